// The demo's application in another language: files over HTTP, and no line that knows of a registry.
package main

import (
	"embed"
	"log"
	"net/http"
	"os"
)

//go:embed index.html
var files embed.FS

func main() {
	address := os.Getenv("ADDRESS")
	if address == "" {
		address = ":8080"
	}
	log.Fatal(http.ListenAndServe(address, http.FileServerFS(files)))
}
