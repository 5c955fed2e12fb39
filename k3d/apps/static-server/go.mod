module pidone.dev/static-server

go 1.22
