"""Many runs of one description: ranges that are searched, and folds that are crossed; each run a folder of its own."""
