//go:build unix

package gracehttp

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/facebookgo/grace/gracenet"
	"github.com/facebookgo/grace/internal/handoff"
	"github.com/facebookgo/grace/internal/testserver/driver"
)

// control sends a request to the control handler, and decodes the answer.
func control[T any](t *testing.T, h http.Handler, method, path string, header ...string) (code int, answer T) {
	t.Helper()
	r := httptest.NewRequest(method, path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
		t.Errorf("%s %s: %d %q: %v", method, path, w.Code, w.Body, err)
	}
	return w.Code, answer
}

func TestStatusSaysHowThingsAre(t *testing.T) {
	h := ControlHandler()
	handoff.Self().Restarted(handoff.Restarted{}) // whatever other tests have done
	if _, s := control[Status](t, h, "GET", "/status"); s.Ready || s.Pid != os.Getpid() || !s.Since.IsZero() || len(s.Addresses) != 0 {
		t.Errorf("before Serve: %+v", s)
	}
	began := time.Now()
	path := t.TempDir() + "/socket"
	serving := make(chan bool)
	s := start(t, []*http.Server{{Handler: h}, {Addr: "unix:" + path, Handler: h}}, OnReady(func() { close(serving) }))
	<-serving
	c := s.connect(0)
	c.send("GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
	resp, body := c.answer()
	var status Status
	if err := json.Unmarshal([]byte(body), &status); err != nil || resp.Header.Get("Content-Type") != "application/json" || resp.Header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%v %v, %v", resp.Header, err, body)
	}
	if !status.Ready || status.State != "serving" || status.Generation != 1 || status.Predecessor != nil || status.LastRestart != nil {
		t.Errorf("while it serves: %s", body)
	}
	if status.Since.Before(began) || time.Since(status.Since) < 0 {
		t.Errorf("it serves since %v, and was started at %v", status.Since, began)
	}
	if want := []string{s.addrs[0], "unix:" + path}; !slices.Equal(status.Addresses, want) {
		t.Errorf("addresses %q, want %q", status.Addresses, want)
	}
	if n := status.Connections; n.Open != 1 || n.HTTP1 != 1 || n.HTTP2 != 0 || n.Hijacked != 0 || n.Oldest.Before(began) {
		t.Errorf("connections with one open: %+v", n)
	}
	if status.Build.Path == "" || !strings.HasPrefix(status.Build.Go, "go") {
		t.Errorf("build: %+v", status.Build)
	}
	for _, phase := range []handoff.Phase{handoff.Restarting, handoff.Draining, handoff.Standby, handoff.LameDuck, handoff.Serving} {
		handoff.Self().SetPhase(phase)
		if _, s := control[Status](t, h, "GET", "/status"); s.State != phase.String() || s.Ready != phase.Ready() {
			t.Errorf("%v: %+v", phase, s)
		}
	}
}

func TestRestartOnlyForThoseWhoMayAsk(t *testing.T) {
	t.Parallel()
	h := ControlHandler()
	for _, test := range []struct {
		header []string
		code   int // 409: it is not serving
	}{
		{nil, 409},
		{[]string{"Sec-Fetch-Site", "same-origin"}, 409},
		{[]string{"Sec-Fetch-Site", "none"}, 409},
		{[]string{"Sec-Fetch-Site", "cross-site"}, 403},
		{[]string{"Sec-Fetch-Site", "same-site"}, 403},
		{[]string{"Origin", "http://example.com"}, 409}, // httptest's host
		{[]string{"Origin", "http://example.org"}, 403},
		{[]string{"Origin", "null"}, 403},
	} {
		if code, outcome := control[Restarted](t, h, "POST", "/restart", test.header...); code != test.code || outcome.Error == "" {
			t.Errorf("%q: %d %+v, want %d", test.header, code, outcome, test.code)
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/restart", nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("GET /restart is answered %d", w.Code)
	}
}

// ask asks a site's control handler on a new connection.
func ask[T any](s *site, method, path string) (code int, answer T) {
	s.t.Helper()
	c := s.connect()
	defer c.Close()
	c.send(method + " /control" + path + " HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
	resp, body := c.answer()
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		s.t.Fatalf("%s %s: %s %q: %v", method, path, resp.Status, body, err)
	}
	return resp.StatusCode, answer
}

func TestWhoAsksLearnsTheOutcome(t *testing.T) {
	t.Parallel()
	faults := driver.NewFaults(t)
	s := startSite(t, "tcp", "", "-faults", string(faults))

	faults.Set(t, "exit")
	code, failed := ask[Restarted](s, "POST", "/restart")
	if code != http.StatusInternalServerError || !strings.Contains(failed.Error, "exit status 2") || failed.Seconds <= 0 || failed.Pid != s.Started(2).Pid {
		t.Errorf("one that fails: %d %+v", code, failed)
	}
	_, status := ask[Status](s, "GET", "/status")
	if last := status.LastRestart; status.Pid != s.first.Pid || status.State != "serving" || last == nil || !strings.Contains(last.Error, "exit status 2") || last.Seconds <= 0 {
		t.Errorf("after that: %+v, last restart %+v", status, last)
	}
	faults.Clear(t, "exit")

	held := s.connect()
	held.begin()
	code, done := ask[Restarted](s, "POST", "/restart")
	second := s.Ready(2)
	if code != http.StatusOK || done.Pid != second.Pid || done.Error != "" || done.Seconds <= 0 {
		t.Errorf("one that succeeds: %d %+v, want pid %d", code, done, second.Pid)
	}
	driver.Eventually(t, "the predecessor to say what it holds", func() bool {
		_, status = ask[Status](s, "GET", "/status")
		return status.Pid == second.Pid && status.Predecessor != nil && strings.Contains(status.Predecessor.Holds, "1 connection")
	})
	if p := status.Predecessor; p.Pid != s.first.Pid || p.State != "draining" || status.Generation != 2 || status.State != "serving" {
		t.Errorf("in the drain: %+v, %+v", status, p)
	}
	if last := status.LastRestart; last == nil || last.Pid != second.Pid || last.Error != "" || last.Seconds <= 0 || last.At.Before(done.At) { // its own time ends when it serves, whenever the other hears of that
		t.Errorf("the last restart is %+v; who asked for it was told %+v", last, done)
	}
	held.finish(s.first)
	s.first.WaitExit(0)
	driver.Eventually(t, "the predecessor to be gone from the status", func() bool {
		_, status = ask[Status](s, "GET", "/status")
		return status.Predecessor == nil
	})
}

func TestClientThatGoesAwayDoesNotEndTheRestart(t *testing.T) {
	t.Parallel()
	faults := driver.NewFaults(t)
	s := startSite(t, "tcp", "", "-faults", string(faults), "-start-timeout", "2s")
	faults.Set(t, "hang")
	c := s.connect()
	c.send("POST /control/restart HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
	driver.Eventually(t, "the restart to be under way", func() bool {
		_, status := ask[Status](s, "GET", "/status")
		return status.State == "restarting"
	})
	if code, other := ask[Restarted](s, "POST", "/restart"); code != http.StatusConflict || !strings.Contains(other.Error, "under way") {
		t.Errorf("another one meanwhile: %d %+v", code, other)
	}
	c.Close()
	s.Line(fmt.Sprintf("restart failed: .*not ready within 2s.*; still serving with pid %d", s.first.Pid))
}

func TestWriteTimeoutDoesNotCutTheAnswer(t *testing.T) {
	t.Parallel()
	faults := driver.NewFaults(t)
	s := startSite(t, "tcp", "", "-faults", string(faults), "-start-timeout", "1s", "-write-timeout", "200ms")
	faults.Set(t, "hang")
	if code, outcome := ask[Restarted](s, "POST", "/restart"); code != http.StatusInternalServerError || !strings.Contains(outcome.Error, "not ready within 1s") {
		t.Errorf("%d %+v", code, outcome)
	}
}

func modeOf(t *testing.T, path string) fs.FileMode {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}

// A socket that was closed for a successor which has failed is opened with its mode, too.
func TestUnixModeOfASocketThatIsOpenedAnew(t *testing.T) {
	for _, want := range []fs.FileMode{0o600, 0o666} {
		g := serveKind(t, "unix", &http.Server{Handler: named("server")}, 0)
		UnixMode(want)(g.app)
		g.closeSocket(false)
		g.Resume()
		if m := modeOf(t, g.addr); m != want {
			t.Errorf("the mode is %o, want %o", m, want)
		}
	}
}

// What the program has opened, it has given a mode.
func TestUnixModeOfTheProgramsOwnListener(t *testing.T) {
	path := t.TempDir() + "/socket"
	l, err := new(gracenet.Net).Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	want := modeOf(t, path)
	serving := make(chan bool)
	srv := &http.Server{Addr: "unix:" + path}
	start(t, []*http.Server{srv}, Listener(srv, l), UnixMode(0o640), OnReady(func() { close(serving) }))
	<-serving
	if m := modeOf(t, path); m != want {
		t.Errorf("the mode is %o, want %o", m, want)
	}
}

func TestUnixMode(t *testing.T) {
	// From the first moment on: nothing but the bind has happened.
	path := t.TempDir() + "/bound"
	withMode(0o600, func(config net.ListenConfig) error {
		l, err := config.Listen(context.Background(), "unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if m := modeOf(t, path); m != 0o600 {
			t.Errorf("when it listens, the mode is %o, want 600", m)
		}
		return nil
	})
	// The umask takes nothing from it.
	for _, want := range []fs.FileMode{0o600, 0o666} {
		path := t.TempDir() + "/socket"
		serving := make(chan bool)
		s := start(t, []*http.Server{{Addr: "unix:" + path, Handler: ControlHandler()}, {}},
			UnixMode(fs.ModeSocket|want), OnReady(func() { close(serving) }))
		<-serving
		if m := modeOf(t, path); m != want {
			t.Errorf("the mode is %o, want %o", m, want)
		}
		s.signal(syscall.SIGTERM)
		<-s.result
	}
	err := ServeWithOptions([]*http.Server{{Addr: "unix:@" + path}}, UnixMode(0o600))
	if err == nil || !strings.Contains(err.Error(), "no mode") {
		t.Errorf("an abstract socket: %v", err)
	}
}
