// One photo over HTTP, with Go's standard library:
//
//	go run classify.go cat.jpg [http://localhost:8080]
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"time"
)

type answer struct {
	Predictions []struct {
		Label string
		Score float64
	}
	// An error instead, as RFC 9457 has it: Code is stable, Detail is for people.
	Code, Detail string
}

func main() {
	server := "http://localhost:8080"
	if len(os.Args) > 2 {
		server = os.Args[2]
	}
	photo, err := os.ReadFile(os.Args[1])
	if err != nil {
		fail(err)
	}
	client := http.Client{Timeout: 10 * time.Second}
	response, err := client.Post(server+"/classify?top_k=3", "application/octet-stream", bytes.NewReader(photo))
	if err != nil {
		fail(err)
	}
	defer response.Body.Close()
	var body answer
	if err := json.NewDecoder(response.Body).Decode(&body); err != nil {
		fail(err)
	}
	if response.StatusCode != http.StatusOK {
		fail(fmt.Errorf("%s: %s %s", body.Code, body.Detail, response.Header.Get("Retry-After")))
	}
	for _, each := range body.Predictions {
		fmt.Printf("%.1f %%  %s\n", 100*each.Score, each.Label)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
