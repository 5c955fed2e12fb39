// Empty: with a file of assembly, Go lets main.go declare functions without a body.
