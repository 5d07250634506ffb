"""All drawing and all pages."""
