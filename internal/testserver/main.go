//go:build unix

// Command testserver is the server that tests start, restart and kill. Package
// driver starts it.
package main

import (
	"log"

	"github.com/facebookgo/grace/internal/testserver/kit"
)

func main() {
	kit.Lifeline()
	kit.Event("start")
	f := kit.Parse()
	closeToOthers()
	supervise()
	enterSandbox()
	f.BeforeReady()

	var err error
	switch f.Mode {
	case "grace":
		err = stream(f, newProcess(f))
	case "plain":
		err = stream(f, std{})
	case "bare":
		err = bare(f)
	case "inherit":
		err = inherit()
	case "ownloop":
		err = ownLoop(f)
	case "netloop":
		err = netLoop(f)
	case "net":
		err = netSockets(f)
	case "udp":
		err = datagrams(f)
	case "http":
		err = serveHTTP(f)
	default:
		log.Fatalf("no mode %q", f.Mode)
	}
	if err != nil {
		kit.Event("failed", "cause", cause(err))
		log.Fatal(err)
	}
	kit.Event("returned")
}
