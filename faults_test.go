//go:build linux

package grace_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/testserver/driver"
)

// A fault is something that goes wrong with a server under load, most of them in a
// restart. Whatever it is, the same is then true: see run.
type fault struct {
	name string
	args []string                                // of the server
	env  func(t *trial) []string                 // of its first process
	play func(t *trial) (serves *driver.Process) // returns who serves then; nil: nobody
	says string                                  // what one line says
	held bool                                    // a predecessor still drains when its successor fails
	died int                                     // processes that may have held requests
	told bool                                    // clients are told to come back by another connection
}

// A trial is a row that is played.
type trial struct {
	*testing.T
	dir    string // where the server runs
	link   driver.Link
	faults driver.Faults
	first  *driver.Process
	s      *driver.Server
	load   *driver.Load
	held   *client
}

// timely is a start timeout that a healthy successor keeps, on a busy machine too.
const timely = 5 * time.Second

// Nothing is lost that no dead process held; the right process serves; one line says what
// happened; the next restart works; SIGTERM ends the server with status 0; no descriptor,
// goroutine, process or file is left.
func (f fault) run(tt *testing.T) {
	driver.NeedProc(tt)
	t := &trial{T: tt, dir: tt.TempDir(), faults: driver.NewFaults(tt), link: driver.NewLink(tt, driver.Binary(tt))}
	socket := filepath.Join(t.dir, "s")
	args := append([]string{
		"-mode", "http", "-listen", "127.0.0.1:0", "-listen", "unix:" + socket, "-pidfile", filepath.Join(t.dir, "pid"),
		"-faults", string(t.faults), "-start-timeout", timely.String(),
	}, f.args...)
	command := driver.Command{Path: string(t.link), Args: args, Dir: t.dir}
	if f.env != nil {
		command.Env = f.env(t)
	}
	t.s = command.Start(tt)
	t.first = t.s.Ready(1)
	before := t.usage(t.first)
	before.descriptors = min(before.descriptors, t.usage(t.first).descriptors)
	if f.held {
		t.held = dial(t, t.first.Addrs[0])
		fmt.Fprint(t.held, "GET /hijack HTTP/1.1\r\nHost: held\r\n\r\n")
		if resp, err := http.ReadResponse(t.held.answers, nil); err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("hijacking: %v, %v", resp, err)
		}
	}
	t.load = driver.StartPacedLoad(t, t.first.Addrs[0], "/pid", 10*time.Millisecond)

	serves := f.play(t)
	if f.says != "" {
		t.s.Line(f.says)
	}
	if serves == nil {
		t.s.WaitEnd()
		t.load.LostAtMost(f.died)
		t.nothingLeft()
		return
	}
	t.servedBy(serves)
	if t.held != nil {
		t.held.servedBy(t.first)
		t.held.Close()
	}
	if serves != t.first {
		t.first.Wait()
	}
	if f.died > 0 || f.told {
		t.load.LostAtMost(f.died)
	} else {
		t.load.NothingLost()
	}
	t.keeps(serves, before)
	if n := t.s.Count(f.says); f.says != "" && n != 1 {
		t.Errorf("%d lines say what happened, want one that matches %q", n, f.says)
	}
	fails := 0
	if strings.HasPrefix(f.says, "restart failed") || f.died > 0 && serves == t.first {
		fails = 1
	}
	if n := t.s.Count("restart failed"); n != fails {
		t.Errorf("%d restarts have failed by the log, want %d", n, fails)
	}

	// The next one.
	t.load = driver.StartPacedLoad(t, t.first.Addrs[0], "/pid", 10*time.Millisecond)
	next := t.restart(serves)
	t.load.Await(2)
	t.load.NothingLost()
	t.servedBy(next)
	t.keeps(next, before)
	next.Signal(syscall.SIGTERM)
	begun := time.Now()
	next.WaitExit(0)
	if took := time.Since(begun); took > patience {
		t.Errorf("SIGTERM took %v", took)
	}
	t.s.WaitEnd()
	t.nothingLeft()
}

// servedBy fails the test unless this process answers on new connections.
func (t *trial) servedBy(p *driver.Process) {
	t.Helper()
	for range 3 {
		if pid, _ := t.get("/pid"); pid != p.Pid {
			t.Fatalf("pid %d answers, want %d", pid, p.Pid)
		}
	}
}

// get returns the number with which the answer begins, on a connection of its own, and the
// answer.
func (t *trial) get(path string) (n int, answer string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: driver.Patience}
	resp, err := client.Get("http://" + t.first.Addrs[0] + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	number, _, _ := strings.Cut(string(b), "\n")
	if n, err = strconv.Atoi(number); err != nil {
		t.Fatalf("%s answers %q", path, b)
	}
	return n, string(b)
}

// restart restarts the process, which then ends well, and returns the successor.
func (t *trial) restart(p *driver.Process) *driver.Process {
	t.Helper()
	n := t.s.Count("^ready ") + 1
	for {
		mark := t.s.Mark()
		p.Signal(syscall.SIGUSR2)
		// A busy machine may have no time for it in so short a time.
		if t.s.Line("^ready |not ready within 3s", mark)[0] == "ready " {
			break
		}
	}
	next := t.s.Ready(n)
	p.WaitExit(0)
	return next
}

// A usage is what a process has.
type usage struct {
	descriptors, goroutines, children int
	stacks                            string
}

func (t *trial) usage(p *driver.Process) usage {
	t.Helper()
	n, stacks := t.get("/goroutines")
	return usage{goroutines: n, stacks: stacks, descriptors: len(p.Descriptors()), children: len(p.Children())}
}

// keeps waits until the process has no more than the first one had when it was fresh.
func (t *trial) keeps(p *driver.Process, before usage) {
	t.Helper()
	if p != t.first {
		before.goroutines++ // accepts what a predecessor moves
	}
	var now usage
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		now = t.usage(p)
		if now.descriptors <= before.descriptors && now.goroutines <= before.goroutines && now.children == 0 {
			return
		}
	}
	t.Errorf("pid %d has %d descriptors, %d goroutines and %d children, a fresh one %d and %d: %v\n%s",
		p.Pid, now.descriptors, now.goroutines, now.children, before.descriptors, before.goroutines, p.Descriptors(), now.stacks)
}

// nothingLeft checks the files.
func (t *trial) nothingLeft() {
	t.Helper()
	entries, err := os.ReadDir(t.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Errorf("the file %s is left", e.Name())
	}
}

// becomes has the program replaced by another one for a restart that fails.
func becomes(program func(t *trial) string) func(t *trial) *driver.Process {
	return func(t *trial) *driver.Process {
		t.link.Move(t, program(t))
		t.failedRestart()
		t.link.Move(t, driver.Binary(t))
		return t.first
	}
}

// plays has a fault of the testserver played in a restart that fails.
func plays(faults ...string) func(t *trial) *driver.Process {
	return func(t *trial) *driver.Process {
		for _, f := range faults {
			t.faults.Set(t, f)
		}
		t.failedRestart()
		for _, f := range faults {
			t.faults.Clear(t, f)
		}
		return t.first
	}
}

func (t *trial) failedRestart() {
	t.Helper()
	t.first.Signal(syscall.SIGUSR2)
	t.s.Line(fmt.Sprintf("restart failed: .*serving (again )?with pid %d", t.first.Pid))
}

// file writes a program.
func file(content string, mode os.FileMode) func(t *trial) string {
	return func(t *trial) string {
		path := filepath.Join(t.TempDir(), "program")
		writeProgram(t, path, []byte(content), mode)
		return path
	}
}

// image is the program's file, changed.
func image(change func(b []byte) []byte) func(t *trial) string {
	return func(t *trial) string {
		b, err := os.ReadFile(driver.Binary(t))
		if err != nil {
			t.Fatal(err)
		}
		return file(string(change(b)), 0o755)(t)
	}
}

func path(p string) func(t *trial) string { return func(*trial) string { return p } }

func stranger(t *trial) string { return driver.Stranger(t) }

// script is the program under a shell's limit.
func limited(limit string) func(t *trial) string {
	return func(t *trial) string {
		return file("#!/bin/sh\nulimit "+limit+"\nexec "+driver.Binary(t)+` "$@"`+"\n", 0o755)(t)
	}
}

// then has the stranger, which serves, killed when it has misbehaved.
func served(says string) func(t *trial) *driver.Process {
	return func(t *trial) *driver.Process {
		t.link.Move(t, driver.Stranger(t))
		t.first.Signal(syscall.SIGUSR2)
		second := t.s.Ready(2)
		t.s.Line("^playing")
		t.s.Line(says)
		t.link.Move(t, driver.Binary(t))
		second.Signal(syscall.SIGKILL)
		t.s.Line(fmt.Sprintf("restart failed: .*serving again with pid %d", t.first.Pid))
		return t.first
	}
}

func play(what string) []string { return []string{"-play", what} }

// Whoever waits for a deadline shall not wait for long.
var short = []string{"-start-timeout", "3s"}

func faults() []fault {
	const (
		start  = `restart failed: .*starting \S+: (fork/exec \S+: )?`
		before = `restart failed: .*successor \S+: `
		after  = `restart failed: successor pid \d+: `
	)
	return []fault{
		// The file.
		{name: "file is missing", play: becomes(path("/nonexistent")), says: start + "no such file"},
		{name: "file is not executable", play: becomes(file("text", 0o644)), says: start + "permission denied"},
		{name: "file is a directory", play: becomes(path("/")), says: start + "permission denied"},
		{name: "file is empty", play: becomes(file("", 0o755)), says: start + "exec format error"},
		{name: "file is text", play: becomes(file("text", 0o755)), says: start + "exec format error"},
		{name: "file has an interpreter that is missing", play: becomes(file("#!/nonexistent\n", 0o755)), says: start + "no such file"},
		{name: "file is half there", play: becomes(image(func(b []byte) []byte { return b[:4096] })), says: "restart failed: "},
		{name: "file is for another machine", play: becomes(image(func(b []byte) []byte { b[18] ^= 0xff; return b })), says: start + "exec format error"},
		{name: "file is being written", play: fileIsBeingWritten, says: start + "text file busy"},
		{name: "file is a link in a circle", play: fileIsACircle, says: start + "too many levels of symbolic links"},
		{name: "file exits with 0", play: becomes(file("#!/bin/sh\n", 0o755)), says: before + `exit status 0 .*before it was ready`},
		{name: "file exits with 7", play: becomes(file("#!/bin/sh\nexit 7\n", 0o755)), says: before + `exit status 7 .*before it was ready`},
		{name: "file is another server", args: short, play: becomes(file("#!/bin/sh\nexec sleep 1000\n", 0o755)), says: before + "not ready within 3s"},
		{name: "file leaves a child that holds the sockets", play: becomes(file("#!/bin/sh\nsleep 1 >/dev/null 2>&1 &\nexit 3\n", 0o755)), says: before + "exit status 3"},

		// The directory.
		{name: "directory is gone", play: directoryIsGone, says: `restart failed: .*in the directory of the start: stat \S+: no such file`},
		{name: "directory is a file", play: directoryIsAFile, says: start + "not a directory"},

		// Before it is ready.
		{name: "exits", play: plays("exit"), says: before + "exit status 2 .*before it was ready"},
		{name: "exits with 0", play: plays("end"), says: before + "exit status 0 .*before it was ready"},
		{name: "panics", play: plays("panic"), says: before + "exit status 2 .*before it was ready"},
		{name: "is killed", play: plays("kill"), says: before + "signal: killed .*before it was ready"},
		{name: "hangs", args: short, play: plays("hang"), says: before + "not ready within 3s.*killed pid"},
		{name: "is stopped", args: short, play: plays("stop"), says: before + "not ready within 3s.*killed pid"},
		{name: "cannot serve", play: plays("unservable"), says: before + "exit status 1 .*before it was ready"},

		// On the wire, before it is ready.
		{name: "says nothing", args: append(play("silence"), short...), play: becomes(stranger), says: before + "not ready within 3s"},
		{name: "says nonsense", args: play("nonsense"), play: becomes(stranger), says: before},
		{name: "says too much", args: play("too-large"), play: becomes(stranger), says: before},
		{name: "says half a word and closes", args: play("half"), play: becomes(stranger), says: before},
		{name: "says half a word and hangs", args: append(play("half-hang"), short...), play: becomes(stranger), says: before + "not ready within 3s"},
		{name: "says half a word and exits", args: play("half-exit"), play: becomes(stranger), says: before + "exit status 3"},
		{name: "says a word byte by byte", args: append(play("trickle"), short...), play: becomes(stranger), says: before + "not ready within 3s"},
		{name: "does not end talking", args: append(play("flood"), short...), play: becomes(stranger), says: before + "not ready within 3s"},
		{name: "sends descriptors", args: append(play("descriptors"), short...), play: becomes(stranger), says: before + "not ready within 3s"},
		{name: "steps down", args: play("step-down"), play: becomes(stranger), says: before + "exit status 0"},
		{name: "closes", args: play("closed"), play: becomes(stranger), says: before + "its end of the control socket is closed, but it runs"},
		{name: "says hello and exits", args: play("hello-exit"), play: becomes(stranger), says: before + "exit status 3"},
		{name: "says hello and hangs", args: append(play("hello-hang"), short...), play: becomes(stranger), says: before + "not ready within 3s"},

		// After it was ready.
		{name: "is killed when ready", held: true, died: 1, play: plays("kill-ready"), says: after + "signal: killed"},
		{name: "exits when ready", held: true, died: 1, play: plays("exit-ready"), says: after + "exit status 2"},
		{name: "exits with 0 when ready", held: true, died: 1, play: plays("end-ready"), says: after + "exit status 0"},
		{name: "panics when ready", held: true, died: 1, play: plays("panic-ready"), says: after + "exit status 2"},

		// On the wire, after it was ready.
		{name: "says ready and dies", args: play("ready-kill"), held: true, died: 1, play: becomes(stranger), says: after + "signal: killed"},
		{name: "dies with connections", args: play("take-kill"), held: true, died: 1, play: becomes(stranger), says: after + "signal: killed"},
		{name: "exits with connections", args: play("take-exit"), held: true, died: 1, play: becomes(stranger), says: after + "exit status 3"},
	}
}

func fileIsBeingWritten(t *trial) *driver.Process {
	program := image(func(b []byte) []byte { return b })(t)
	f, err := os.OpenFile(program, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return becomes(path(program))(t)
}

func fileIsACircle(t *trial) *driver.Process {
	circle := filepath.Join(t.TempDir(), "circle")
	if err := os.Symlink(circle, circle); err != nil {
		t.Fatal(err)
	}
	return becomes(path(circle))(t)
}

// away has the directory of the start away for a restart.
func (t *trial) away(instead func()) *driver.Process {
	aside := t.dir + ".aside"
	if err := os.Rename(t.dir, aside); err != nil {
		t.Fatal(err)
	}
	instead()
	t.failedRestart()
	os.Remove(t.dir)
	if err := os.Rename(aside, t.dir); err != nil {
		t.Fatal(err)
	}
	return t.first
}

func directoryIsGone(t *trial) *driver.Process { return t.away(func() {}) }

func directoryIsAFile(t *trial) *driver.Process {
	return t.away(func() { writeProgram(t, t.dir, nil, 0o600) })
}

// rowsAtOnce is how many rows are played side by side: most of them wait, most of the
// time.
const rowsAtOnce = 6

func TestFaults(t *testing.T) {
	t.Parallel()
	driver.Binary(t)
	all := faults()
	next := make(chan fault)
	var players sync.WaitGroup
	for range rowsAtOnce {
		players.Add(1)
		go func() {
			defer players.Done()
			for f := range next {
				t.Run(f.name, f.run)
			}
		}()
	}
	for _, f := range all {
		next <- f
	}
	close(next)
	players.Wait()
	names := map[string]bool{}
	for _, f := range all {
		if names[f.name] {
			t.Errorf("two rows are called %q", f.name)
		}
		names[f.name] = true
	}
	t.Logf("%d rows", len(all))
}
