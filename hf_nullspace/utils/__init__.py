"""What every wing uses and none owns: random numbers, files, processes, figures, words."""
