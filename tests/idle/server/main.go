// An application for the kubelet's probes: "server http|https|grpc PORT" answers on a port, and "server ask PORT" asks it.
// It has the standard library alone: HTTP/2 without TLS is in it, and a gRPC answer is five bytes and two trailers.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"log"
	"math/big"
	"net/http"
	"os"
	"time"
)

func certificate() tls.Certificate {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	if err != nil {
		log.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func answer(writer http.ResponseWriter, request *http.Request) {
	if request.Header.Get("Content-Type") != "application/grpc" {
		writer.Write([]byte("ok\n"))
		return
	}
	writer.Header().Set("Content-Type", "application/grpc")
	writer.Header().Set("Trailer", "Grpc-Status")
	writer.Write([]byte{0, 0, 0, 0, 2, 8, 1}) // HealthCheckResponse: SERVING
	writer.Header().Set("Grpc-Status", "0")
}

func main() {
	kind, port := os.Args[1], os.Args[2]
	if kind == "ask" {
		response, err := http.Get("http://127.0.0.1:" + port)
		if err != nil || response.StatusCode != 200 {
			log.Fatal(err)
		}
		return
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	server := http.Server{Addr: ":" + port, Handler: http.HandlerFunc(answer), Protocols: &protocols}
	if kind == "https" {
		server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{certificate()}}
		log.Fatal(server.ListenAndServeTLS("", ""))
	}
	log.Fatal(server.ListenAndServe())
}
