"""What training costs before it starts: counted operations and memory, and how fast devices are."""
