//go:build unix

package gracehttp

import (
	"net/http"
	"net/http/httptest"
	"syscall"
	"testing"

	"github.com/facebookgo/grace/internal/handoff"
	"github.com/facebookgo/grace/internal/testserver/driver"
)

func TestReadyUntilTheStop(t *testing.T) {
	probe := func(method string) *http.Response {
		w := httptest.NewRecorder()
		ReadyHandler().ServeHTTP(w, httptest.NewRequest(method, "/ready", nil))
		return w.Result()
	}
	expect := func(when string, ready bool) {
		t.Helper()
		status, connection := http.StatusServiceUnavailable, "close"
		if ready {
			status, connection = http.StatusOK, ""
		}
		if Ready() != ready {
			t.Errorf("%s: Ready is %v", when, !ready)
		}
		for _, method := range []string{"GET", "HEAD"} {
			r := probe(method)
			if r.StatusCode != status || r.Header.Get("Connection") != connection || r.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s: %s is answered %s, %v", when, method, r.Status, r.Header)
			}
		}
	}
	expect("before Serve", false)
	s := start(t, []*http.Server{{Handler: ReadyHandler()}}, DrainTimeout(patience))
	c := s.connect(0) // keeps the stop from ending at once
	c.send(get)
	c.expect("ready\n")
	expect("while it serves", true)
	for _, phase := range []handoff.Phase{handoff.Restarting, handoff.Draining, handoff.Standby, handoff.LameDuck, handoff.Serving} {
		handoff.Self().SetPhase(phase)
		expect(phase.String(), phase != handoff.LameDuck)
	}
	s.signal(syscall.SIGTERM)
	driver.Eventually(t, "the process not to be ready", func() bool { return !Ready() })
	expect("in a stop", false)
	c.Close()
	if err := within(t, s.result, "the end of Serve"); err != nil {
		t.Errorf("Serve: %v", err)
	}
	expect("after Serve", false)
}
