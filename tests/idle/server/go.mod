module pidone.dev/tests/idle/server

go 1.26
