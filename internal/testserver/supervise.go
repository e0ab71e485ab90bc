//go:build unix

package main

import (
	"flag"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"github.com/facebookgo/grace"
	"github.com/facebookgo/grace/internal/testserver/kit"
)

var (
	supervised = flag.Bool("supervise", false, "Keep this process as the parent of all generations.")
	report     = flag.Bool("report-signals", false, "Say which signals arrive that the library has no use for.")
	stdin      = flag.Bool("read-stdin", false, "Read from the standard input, and say how that went.")
	orphan     = flag.Bool("orphan", false, "Leave a process behind that has no parent.")
)

// supervise returns in a generation alone.
func supervise() {
	if *supervised {
		if err := grace.Supervise(); err != nil {
			kit.Event("failed")
			log.Fatal(err)
		}
		kit.Event("supervised")
	}
	if *report {
		signals := make(chan os.Signal, 100)
		signal.Notify(signals, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGALRM, syscall.SIGWINCH, syscall.SIGQUIT)
		go func() {
			for sig := range signals {
				kit.Event("got", "signal", strings.ReplaceAll(sig.String(), " ", "-"))
			}
		}()
	}
	if *stdin {
		go func() {
			n, err := os.Stdin.Read(make([]byte, 1))
			kit.Event("stdin", "bytes", n, "error", err)
		}()
	}
	if *orphan {
		out, err := exec.Command("/bin/sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!").Output()
		if err != nil {
			log.Fatal(err)
		}
		kit.Event("orphan", "child", strings.TrimSpace(string(out)))
	}
}
