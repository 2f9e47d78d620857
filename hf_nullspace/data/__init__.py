"""Pictures and labels: from folders, tables and the Hub to splits with checked classes."""
