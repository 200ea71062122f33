"""Memory of training, in bytes by part: predicted from a config, traced through the real code, or counted."""
