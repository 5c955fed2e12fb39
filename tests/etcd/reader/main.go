// etcd itself, and the readers of its layouts: etcd server FLAGS, or etcd read ENDPOINTS [USER PASSWORD] for questions,
// or etcd bench ENDPOINTS USER PASSWORD LEASES for figures.
package main

import (
	"fmt"
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	switch {
	case len(os.Args) > 1 && os.Args[1] == "server":
		// as if it were a program of its own
		etcdmain.Main(append([]string{"etcd"}, os.Args[2:]...))
	case len(os.Args) > 2 && os.Args[1] == "read":
		if err := answer(os.Args[2], os.Args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case len(os.Args) == 6 && os.Args[1] == "bench":
		if err := bench(os.Args[2], os.Args[3], os.Args[4], os.Args[5]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	default:
		fmt.Fprintf(os.Stderr, "usage: %s server FLAGS | read ENDPOINTS [USER PASSWORD] | bench ENDPOINTS USER PASSWORD LEASES\n", os.Args[0])
		os.Exit(2)
	}
}
