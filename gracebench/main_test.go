package main

import (
	"fmt"
	"os"
	"testing"
	"time"
)

// The test's own program is the server under test, as gracebench's is.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "-serve" {
		if err := serveMain(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "server:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// testConfig is for few restarts that follow soon on each other.
func testConfig(t *testing.T) config {
	sig, err := signalByName("USR2")
	if err != nil {
		t.Skip(err)
	}
	return config{clients: 8, restarts: 2, rapid: 2, interval: 20 * time.Millisecond, steady: 100 * time.Millisecond, short: true, signal: sig}
}

// A measurement that finds nothing lost with anybody would be worth nothing.
func TestRecipeLosesRequestsAndGraceDoesNot(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds a program and restarts it")
	}
	cfg := testConfig(t)
	kinds, err := chooseKinds("http1,http1-new", true)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range allPeers[:2] { // grace, net/http
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			r, err := p.run(t.Context(), cfg, kinds, func(string, *target) {})
			if err != nil {
				t.Fatal(err)
			}
			if r.Skipped != "" {
				t.Skip(r.Skipped)
			}
			for _, row := range []*row{r.KeepAlive, r.New} {
				if row.Restarts != cfg.restarts {
					t.Errorf("%s: %d restarts, want %d", row.Kind, row.Restarts, cfg.restarts)
				}
				if lost := row.Lost > 0; lost != (p.folder != "") {
					t.Errorf("%s: %d requests lost: %v", row.Kind, row.Lost, row.LostBy)
				}
			}
		})
	}
}
