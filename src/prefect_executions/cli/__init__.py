"""The terminal's door: it parses, calls the hall and shows the answer."""
