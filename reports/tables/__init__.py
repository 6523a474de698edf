"""Tables of measured and published numbers, and the text formats that all reports share."""
