"""The methods: one file each, with their recipes beside them."""
