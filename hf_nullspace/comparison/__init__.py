"""Ways of finetuning against each other: planned, run, tested for differences, and reported."""
