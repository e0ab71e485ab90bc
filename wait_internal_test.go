package grace

import (
	"log"
	"os"
	"strings"
	"testing"

	"github.com/facebookgo/grace/internal/handoff"
)

func TestStopMentionsARestartSignalThatCameEarly(t *testing.T) {
	var lines strings.Builder
	g := handoff.Self()
	defer g.Stop(false)
	w := &waiter{p: &Process{Logger: log.New(&lines, "", 0)}, g: g, early: os.Interrupt}
	if err := w.stop(false); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(lines.String(), "restart signal ignored"); n != 1 {
		t.Errorf("mentioned %d times in:\n%s", n, lines.String())
	}
}
