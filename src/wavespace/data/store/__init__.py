"""Recordings and features as rows on disk."""
