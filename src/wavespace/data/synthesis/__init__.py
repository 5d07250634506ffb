"""Audio that is made: composed scores, rendered sounds, tones."""
