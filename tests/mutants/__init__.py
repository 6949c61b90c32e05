"""The released code's defects as patches to this tree, and the program that shows that their tests notice them: `make mutants`."""
