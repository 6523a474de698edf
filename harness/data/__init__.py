"""Data sources (VOC, ADE20K, synthetic scenes), their index, transforms and loaders."""
