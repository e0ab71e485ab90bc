//go:build unix

// Command original takes the test server's place as a program that is built on
// facebookgo/grace.
package main

import (
	"flag"
	"log"
	"os"

	"github.com/facebookgo/grace/internal/testserver/facebookgo/grace/gracenet"
	"github.com/facebookgo/grace/internal/testserver/kit"
)

func main() {
	for _, name := range []string{"supervise", "hooks"} {
		flag.Bool(name, false, "Has no effect.")
	}
	kit.Lifeline()
	kit.Event("start")
	f := kit.Parse()
	f.BeforeReady()
	if err := gracenet.Serve(f); err != nil {
		kit.Event("failed")
		log.Fatal(err)
	}
	kit.Event("returned")
	os.Exit(0)
}
