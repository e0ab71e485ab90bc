//go:build linux

// Package deploy tests the units beside it under a real systemd.
package deploy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/testserver/driver"
	"github.com/facebookgo/grace/internal/testserver/systemd"
)

const module = "github.com/facebookgo/grace/"

func TestMain(m *testing.M) {
	os.Exit(systemd.Run(m, module+"gracedemo", module+"internal/testserver"))
}

// deployed is where the units expect the program.
const deployed = "/usr/local/bin/gracedemo"

// deploy puts the program there.
func deploy(t *testing.T) {
	t.Helper()
	replace(t, deployed, systemd.Program(t, "gracedemo"))
}

// replace lets path lead to another program, in one step.
func replace(t *testing.T, path, program string) {
	t.Helper()
	next := path + ".next"
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(program, next); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
}

// script writes a program that a shell runs.
func script(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// A demo is a service of its own, with settings beyond those of the unit file.
type demo struct {
	*systemd.Unit
	t       *testing.T
	program string // a link that can be moved
	addr    string // the first of three
	held    string // path of a request that is held by its body
}

var demos atomic.Int32

// newDemo installs a unit file under another name, so that tests run side by
// side: with its own program and addresses.
func newDemo(t *testing.T, file string, settings ...string) *demo {
	t.Helper()
	return newDemoWith(t, file, "", settings...)
}

// newDemoWith adds flags to the command line.
func newDemoWith(t *testing.T, file, flags string, settings ...string) *demo {
	t.Helper()
	systemd.Need(t)
	n := int(demos.Add(1))
	name := fmt.Sprintf("demo%d.service", n)
	d := &demo{
		t:       t,
		program: fmt.Sprintf("/opt/demo%d/gracedemo", n),
		addr:    fmt.Sprintf("127.0.0.1:%d", 20000+10*n),
		held:    "/sleep/",
	}
	replace(t, d.program, systemd.Program(t, "gracedemo"))
	command := fmt.Sprintf("ExecStart=%s -a0 %s -a1 127.0.0.1:%d -a2 127.0.0.1:%d %s",
		d.program, d.addr, 20001+10*n, 20002+10*n, flags)
	lines := []string{"[Service]", "ExecStart=", command}
	if file != "gracedemo-notify-reload.service" {
		// At another address, and for programs without a control server.
		lines = append(lines, "ExecReload=", "ExecReload=/bin/kill -USR2 $MAINPID")
	}
	lines = append(lines, settings...)
	d.Unit = systemd.System.Install(t, file, name, strings.Join(lines, "\n")+"\n")
	return d
}

// useTestServer lets the service be one that plays faults.
func (d *demo) useTestServer(args ...string) {
	d.t.Helper()
	command := fmt.Sprintf("%s -mode http -listen %s %s", systemd.Program(d.t, "testserver"), d.addr, strings.Join(args, " "))
	replace(d.t, d.program, script(d.t, d.program+".testserver", "exec "+command))
	d.held = "/echo"
}

// reload reloads, and waits until a new process answers.
func (d *demo) reload() (pid int) {
	d.t.Helper()
	old := ask(d.t, d.addr)
	d.Do("reload")
	return awaitAnotherThan(d.t, d.addr, old)
}

// awaitMain waits until this is the main process: the drain of its predecessor, which
// was it until then, is over.
func awaitMain(t *testing.T, u *systemd.Unit, pid int) {
	t.Helper()
	u.Await("MainPID", strconv.Itoa(pid))
	u.Await("SubState", "running")
}

// awaitAnotherThan waits until a new process answers.
func awaitAnotherThan(t *testing.T, addr string, old int) (pid int) {
	t.Helper()
	driver.Eventually(t, fmt.Sprintf("another process than pid %d to answer", old), func() bool {
		pid = ask(t, addr)
		return pid != old
	})
	return pid
}

// A client talks to a demo.
type client struct {
	http.Client
	addr string
}

// newClient returns one that connects to a TCP address, or a path.
func newClient(addr string) *client {
	network := "tcp"
	if strings.HasPrefix(addr, "/") {
		network = "unix"
	}
	return &client{addr: addr, Client: http.Client{
		Timeout: time.Minute,
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, addr)
			},
			ExpectContinueTimeout: time.Minute,
		},
	}}
}

// answered is how a demo's answer ends.
var answered = regexp.MustCompile(`from pid (\d+)\.`)

// sleep asks for an answer after d, and returns the process that gives it.
func (c *client) sleep(d time.Duration) (pid int, err error) {
	return c.post("/sleep/", strings.NewReader("duration="+d.String()), nil)
}

// post sends a request. began, unless it is nil, is called when it is being
// handled.
func (c *client) post(path string, body io.Reader, began func()) (pid int, err error) {
	req, err := http.NewRequest("POST", "http://demo"+path, body)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if began != nil {
		// The handler asks for the body.
		req.Header.Set("Expect", "100-continue")
		req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{Got100Continue: began}))
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	if pid := resp.Header.Get("Pid"); pid != "" { // the test server
		return strconv.Atoi(pid)
	}
	m := answered.FindSubmatch(answer)
	if m == nil {
		return 0, fmt.Errorf("%s: %s", resp.Status, answer)
	}
	return strconv.Atoi(string(m[1]))
}

// ask returns the process that answers on a new connection.
func ask(t *testing.T, addr string) (pid int) {
	t.Helper()
	c := newClient(addr)
	defer c.CloseIdleConnections()
	pid, err := c.sleep(0)
	if err != nil {
		t.Fatalf("a request to %s: %v", addr, err)
	}
	return pid
}

// A held request is under way until it is released.
type held struct {
	t      *testing.T
	body   *io.PipeWriter
	answer chan answer
}

type answer struct {
	pid int
	err error
}

// hold begins a request, and returns when it is being handled.
func hold(t *testing.T, addr, path string) *held {
	t.Helper()
	body, w := io.Pipe()
	h := &held{t: t, body: w, answer: make(chan answer, 1)}
	began := make(chan struct{})
	go func() {
		c := newClient(addr)
		defer c.CloseIdleConnections()
		pid, err := c.post(path, body, func() { close(began) })
		h.answer <- answer{pid, err}
	}()
	t.Cleanup(func() { w.Close() })
	select {
	case <-began:
	case a := <-h.answer:
		t.Fatalf("a request to %s: %v", addr, a.err)
	}
	return h
}

// release lets the handler go on.
func (h *held) release() {
	io.WriteString(h.body, "duration=0s")
	h.body.Close()
}

// finish releases the request, and checks who answers.
func (h *held) finish(pids ...int) {
	h.t.Helper()
	h.release()
	h.by(pids...)
}

// by waits for the answer, and fails the test if it is not from one of these
// processes: for a moment two of them accept connections.
func (h *held) by(pids ...int) {
	h.t.Helper()
	if a := <-h.answer; a.err != nil {
		h.t.Errorf("the request that pid %d had begun: %v", pids, a.err)
	} else if !slices.Contains(pids, a.pid) {
		h.t.Errorf("pid %d answered the request that pid %d had begun", a.pid, pids)
	}
}

// load sends requests until stop is called, which fails the test if one of them
// was lost. Half of the clients keep their connections. A stop closes those, also
// one into which a request is being written: against stops, load must be fresh.
func load(t *testing.T, addr string, fresh bool) (stop func()) {
	t.Helper()
	const clients, pause = 4, 2 * time.Millisecond
	done := make(chan struct{})
	var wg sync.WaitGroup
	var sent atomic.Int64
	for i := range clients {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c := newClient(addr)
			defer c.CloseIdleConnections()
			for {
				if _, err := c.sleep(0); err != nil {
					t.Errorf("under load: request %d was lost: %v", sent.Load(), err)
					return
				}
				sent.Add(1)
				if fresh || i%2 == 0 {
					c.CloseIdleConnections()
				}
				select {
				case <-time.After(pause):
				case <-done:
					return
				}
			}
		}()
	}
	return sync.OnceFunc(func() {
		close(done)
		wg.Wait()
		if sent.Load() == 0 {
			t.Error("no request was answered under load")
		}
	})
}

// equal fails the test if a property is not as it should be.
func equal(t *testing.T, u *systemd.Unit, property, want string) {
	t.Helper()
	if is := u.Get(property); is != want {
		t.Errorf("%s of %s is %q, want %q", property, u.Name, is, want)
	}
}
