"""Audio files, MIDI files and downloads."""
