"""The training of one step. ``loop.py`` has the loop; the other files hold the helpers that it calls."""
