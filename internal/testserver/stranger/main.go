//go:build unix

// Command stranger takes the test server's place where that one must not be
// built on the library: a successor that does something wrong, or new, on
// the control socket.
package main

import (
	"flag"
	"log"
	"os"
	"strings"

	"github.com/facebookgo/grace/internal/testserver/kit"
)

func main() {
	kit.Lifeline()
	kit.Event("start")
	flag.Bool("move", false, "The test server has it.")
	for _, name := range []string{"pidfile", "standby"} {
		flag.String(name, "", "The test server has it.")
	}
	f := kit.Parse()
	f.BeforeReady()

	var err error
	switch play, as, _ := strings.Cut(f.Play, ":"); play {
	case "parent":
		err = parent(as)
	default:
		err = fake(f)
	}
	if err != nil {
		kit.Event("failed")
		log.Fatal(err)
	}
	kit.Event("returned")
	os.Exit(0)
}
