"""Video and sound files: probing, cutting, frames by presentation time, sound, faces. Nothing of a file is believed."""
