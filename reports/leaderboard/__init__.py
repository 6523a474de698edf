"""The leaderboard: published and measured numbers side by side, each with its source and how far to trust it."""
