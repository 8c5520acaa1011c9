"""Clip shards: clips of video, sound and text, planned, built and read by range."""
