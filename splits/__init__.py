"""Settings, steps, class orders and image selection: plain data and pure Python."""
