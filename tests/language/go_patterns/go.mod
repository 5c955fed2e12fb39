module pidone.dev/tests/go_patterns

go 1.21
