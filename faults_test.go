//go:build linux

package grace_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/facebookgo/grace/internal/testserver/driver"
)

// A fault is something that goes wrong with a server under load, most of them in a
// restart. Whatever it is, the same is then true: see run.
type fault struct {
	name  string
	args  []string                                // of the server
	env   func(t *trial) []string                 // of its first process
	play  func(t *trial) (serves *driver.Process) // returns who serves then, nil: nobody; not called if the server does not start
	says  string                                  // what one line says
	set   func(t *trial, c *driver.Command)
	held  bool // a predecessor still drains when its successor fails
	died  int  // processes that may have held requests
	twice bool // says is said by each generation
	stuck int  // goroutines that a hook keeps
	keeps int  // connections that a hook keeps, so that the process ends with an error
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
	says   string
	silent *os.File
	fresh  usage // what the first process had before the load
}

// pause is that of the load's busy clients between two requests.
const pause = 40 * time.Millisecond

// timely is how long a stop may take, on a busy machine too, when nobody is waited for.
const timely = 5 * time.Second

// Nothing is lost that no dead process held; the right process serves; one line says what
// happened; the next restart works; SIGTERM ends the server with status 0; no descriptor,
// goroutine, process or file is left.
func (f fault) run(tt *testing.T) {
	driver.NeedProc(tt)
	t := &trial{T: tt, says: f.says, dir: tt.TempDir(), faults: driver.NewFaults(tt), link: driver.NewLink(tt, driver.Binary(tt))}
	socket := filepath.Join(t.dir, "s")
	args := append([]string{
		"-mode", "http", "-listen", "127.0.0.1:0", "-listen", "unix:" + socket, "-pidfile", filepath.Join(t.dir, "pid"),
		"-faults", string(t.faults), "-start-timeout", driver.Patience.String(),
	}, f.args...)
	command := driver.Command{Path: string(t.link), Args: args, Dir: t.dir}
	if f.env != nil {
		command.Env = f.env(t)
	}
	if f.set != nil {
		f.set(t, &command)
	}
	t.s = command.Start(tt)
	if f.play == nil { // it does not start
		t.s.Line(f.says)
		t.s.WaitEnd()
		t.nothingLeft()
		return
	}
	t.first = t.s.Ready(1)
	before := t.usage(t.first)
	before.descriptors = min(before.descriptors, t.usage(t.first).descriptors)
	t.fresh = before
	if f.held {
		t.held = dial(t, t.first.Addrs[0])
		fmt.Fprint(t.held, "GET /hijack HTTP/1.1\r\nHost: held\r\n\r\n")
		if resp, err := http.ReadResponse(t.held.answers, nil); err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("hijacking: %v, %v", resp, err)
		}
	}
	t.load = driver.StartPacedLoad(t, t.first.Addrs[0], "/pid", pause)

	serves := f.play(t)
	if f.says != "" {
		t.s.Line(f.says)
	}
	if serves == nil {
		t.s.WaitEnd()
		t.load.LostAtMost(f.died)
		t.nothingLeft()
		t.said(f, 0)
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
	if f.died > 0 {
		t.load.LostAtMost(f.died)
	} else {
		t.load.NothingLost()
	}
	kept := before
	kept.goroutines += f.stuck
	kept.descriptors += f.keeps
	t.keeps(serves, kept)
	fails := 0
	if strings.HasPrefix(f.says, "restart failed") || f.died > 0 && serves == t.first {
		fails = 1
	}
	t.said(f, fails)

	// The next one.
	t.load = driver.StartPacedLoad(t, t.first.Addrs[0], "/pid", pause)
	next := t.restartTo(serves, min(f.keeps, 1))
	t.load.Await(2)
	t.load.NothingLost()
	t.servedBy(next)
	t.keeps(next, before)
	next.Signal(syscall.SIGTERM)
	begun := time.Now()
	next.WaitExit(0)
	t.took(begun, syscall.SIGTERM)
	t.s.WaitEnd()
	t.nothingLeft()
}

// said checks what the log says.
func (t *trial) said(f fault, failed int) {
	t.Helper()
	if n := t.s.Count(f.says); f.says != "" && n != 1 && !(n == 2 && f.twice) {
		t.Errorf("%d lines say what happened, want one that matches %q", n, f.says)
	}
	if n := t.s.Count("restart failed"); n != failed {
		t.Errorf("%d restarts have failed by the log, want %d", n, failed)
	}
}

// took fails the test if the end has taken too long.
func (t *trial) took(since time.Time, sig syscall.Signal) {
	t.Helper()
	if took := time.Since(since); took > timely {
		t.Errorf("%v took %v", sig, took)
	}
}

// servedBy fails the test unless this process answers on new connections.
func (t *trial) servedBy(p *driver.Process) {
	t.Helper()
	driver.Eventually(t, fmt.Sprintf("pid %d to answer", p.Pid), func() bool { // for a moment its predecessor may
		pid, _ := t.get("/pid")
		return pid == p.Pid
	})
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
	return t.restartTo(p, 0)
}

func (t *trial) restartTo(p *driver.Process, status int) *driver.Process {
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
	p.WaitExit(status)
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
	for _, d := range p.Sockets() {
		if d.Blocking() {
			t.Errorf("%v of pid %d blocks", d, p.Pid)
		}
	}
	var now usage
	if driver.Becomes(func() bool {
		now = t.usage(p)
		return now.descriptors <= before.descriptors && now.goroutines <= before.goroutines && now.children == 0
	}) {
		return
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

// served has a stranger serve that misbehaves, and is then killed.
func served(t *trial) *driver.Process {
	t.link.Move(t, driver.Stranger(t))
	t.first.Signal(syscall.SIGUSR2)
	second := t.s.Ready(2)
	t.s.Line("^playing")
	t.load.Await(2)
	if t.says != "" {
		t.s.Line(t.says)
	}
	if n := t.load.Lost(); n > 0 {
		t.Errorf("%d requests were lost before anybody died", n)
	}
	t.link.Move(t, driver.Binary(t))
	second.Signal(syscall.SIGKILL)
	t.s.Line(fmt.Sprintf("restart failed: .*serving again with pid %d", t.first.Pid))
	return t.first
}

func play(what string) []string { return []string{"-play", what} }

// idle ends a drain soon in which nothing can move.
var idle = []string{"-idle-grace", "1s"}

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
		{name: "says nonsense when ready", args: play("ready-nonsense"), held: true, died: 1, play: served, says: silent},
		{name: "says half a word when ready", args: play("ready-half"), held: true, died: 1, play: served},
		{name: "closes when ready", args: play("ready-close"), held: true, died: 1, play: served, says: silent},
		{name: "says a word byte by byte when ready", args: play("ready-trickle"), held: true, died: 1, play: served},
		{name: "does not end talking when ready", args: play("ready-flood"), held: true, died: 1, play: served},
		{name: "says twice that it is ready", args: play("ready-twice"), held: true, died: 1, play: served},
		{name: "is of a later version", args: play("newer"), held: true, died: 1, play: served},
		{name: "refuses connections", args: play("take-refuse"), held: true, died: 1, play: served, says: "takes no connections"},
		{name: "does not answer for connections", args: play("take-hang"), held: true, died: 1, play: served, says: "takes no connections"},
		{name: "answers something else for connections", args: play("take-other"), held: true, died: 1, play: served, says: "takes no connections"},
		{name: "answers nonsense for connections", args: play("take-nonsense"), held: true, died: 1, play: served, says: "takes no connections"},
		{name: "answers half a word for connections", args: play("take-half"), held: true, died: 1, play: served, says: "takes no connections"},
		{name: "closes the answer for connections", args: play("take-close"), held: true, died: 1, play: served, says: "takes no connections"},

		{name: "is stopped when ready", args: idle, held: true, died: 1, play: stoppedWhenReady, says: after + "signal: killed"},
		{name: "is killed when the predecessor stands by", args: []string{"-standby", "5s"}, died: 1, play: killedInStandby, says: after + "signal: killed"},

		// The predecessor's end.
		{name: "predecessor is killed", died: 1, play: predecessorDies(syscall.SIGKILL, false), says: orphaned},
		{name: "predecessor aborts", died: 1, play: predecessorDies(syscall.SIGABRT, false), says: orphaned},
		{name: "predecessor is killed as it is told", died: 1, play: predecessorDies(syscall.SIGKILL, true), says: `^ready pid=\d+ addrs=\S+`, twice: true},
		{name: "predecessor is killed in its drain", died: 1, play: predecessorDiesDraining, says: ready},

		// Signals, in all orders. SIGINT waits for nobody idle, who may be writing.
		{name: "TERM", play: signals("", syscall.SIGTERM), says: "terminated: stopping pid"},
		{name: "INT", died: 1, play: signals("", syscall.SIGINT), says: "interrupt: stopping pid"},
		{name: "TERM USR2", play: signals("", syscall.SIGTERM, syscall.SIGUSR2), says: "terminated: stopping pid"},
		{name: "INT USR2", died: 1, play: signals("", syscall.SIGINT, syscall.SIGUSR2), says: "interrupt: stopping pid"},
		{name: "TERM TERM", play: signals("", syscall.SIGTERM, syscall.SIGTERM), says: "stopping pid"},
		{name: "USR2 TERM", play: signals("slow", syscall.SIGTERM), says: "restart given up"},
		{name: "USR2 INT", died: 1, play: signals("slow", syscall.SIGINT), says: "restart given up"},
		{name: "USR2 USR2 TERM", play: signals("slow", syscall.SIGUSR2, syscall.SIGTERM), says: "restart given up"},
		{name: "USR2 TERM USR2", play: signals("slow", syscall.SIGTERM, syscall.SIGUSR2), says: "restart given up"},
		{name: "USR2 INT TERM", died: 1, play: signals("slow", syscall.SIGINT, syscall.SIGTERM), says: "restart given up"},
		{name: "USR2 TERM, half a word", args: play("half-hang"), play: signals("stranger", syscall.SIGTERM), says: "restart given up"},
		{name: "USR2 TERM, byte by byte", args: play("trickle"), play: signals("stranger", syscall.SIGTERM), says: "restart given up"},
		{name: "USR2 TERM, without end", args: play("flood"), play: signals("stranger", syscall.SIGTERM), says: "restart given up"},
		{name: "USR2 TERM, nothing said", args: play("silence"), play: signals("stranger", syscall.SIGTERM), says: "restart given up"},
		{name: "USR2 TERM, PreStart hangs", play: signals("prestart-hang", syscall.SIGTERM), says: "restart given up"},
		{name: "USR2 USR2", play: secondRestartSignal, says: "restart signal ignored: .*under way"},
		{name: "USR2, and TERM in the drain", held: true, play: signalInTheDrain(syscall.SIGTERM), says: "terminated: pid .* is ending already"},
		{name: "USR2, and INT in the drain", held: true, play: signalInTheDrain(syscall.SIGINT), says: "interrupt: pid .* is ending already"},
		{name: "USR2, and USR2 in the drain", held: true, play: restartInTheDrain, says: "restart signal passed on"},

		// Hooks.
		{name: "PreStart fails", play: plays("prestart"), says: "restart failed: .*before the start: checking"},
		{name: "PreStart panics", play: plays("prestart-panic"), says: "restart failed: .*before the start: PreStart: panic: played"},
		{name: "PreStart exits", play: plays("prestart-goexit"), says: "restart failed: .*before the start: .*runtime.Goexit"},
		{name: "PreStart hangs", args: short, stuck: 1, play: plays("prestart-hang"), says: "restart failed: .*PreStart has not returned within 3s"},
		{name: "OnRestart panics", play: hooked("onrestart-panic"), says: `\d OnRestart: panic: played`},
		{name: "OnRestart exits", play: hooked("onrestart-goexit"), says: ready},
		{name: "OnRestart hangs", args: bounded, play: hooked("onrestart-hang"), says: "ends without waiting for a hook"},
		{name: "OnDrain panics", play: hooked("ondrain-panic"), says: `\d OnDrain: panic: played`},
		{name: "OnDrain exits", play: hooked("ondrain-goexit"), says: ready},
		{name: "OnDrain hangs", args: bounded, play: hooked("ondrain-hang"), says: "ends without waiting for a hook"},
		{name: "OnReady panics", play: hooked("onready-panic"), says: `\d OnReady: panic: played`},
		{name: "OnReady exits", play: hooked("onready-goexit"), says: ready},
		{name: "OnReady hangs", args: bounded, stuck: 2, play: hooked("onready-hang"), says: ready},
		{name: "OnMove panics", args: []string{"-move"}, play: moved("onmove-panic"), says: `\d OnMove: panic: played`},
		{name: "OnMove exits", args: []string{"-move"}, play: moved("onmove-goexit"), says: ready},
		{name: "OnMove hangs", args: append([]string{"-move"}, bounded...), stuck: 1, keeps: 1, play: moved("onmove-hang"), says: ready},

		// Clients.
		{name: "client says nothing", play: client0(""), says: ready},
		{name: "client says half a request", play: client0("GET /pid HT"), says: ready},
		{name: "client says nonsense", play: client0("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), says: ready},
		{name: "client does not read", play: client0(strings.Repeat("GET /env HTTP/1.1\r\nHost: x\r\n\r\n", 1000)), says: ready},
		{name: "client resets", play: clientResets, says: ready},
		{name: "clients come and go", play: clientsComeAndGo, says: ready},

		// The PID file.
		{name: "PID file cannot be written", args: pidFile("/nonexistent/pid"), play: restarts, says: "writing the PID file .*no such file.*serving without it", twice: true},
		{name: "PID file is a directory", args: pidFile("/"), play: restarts, says: "writing the PID file .*serving without it", twice: true},
		{name: "PID file is removed", play: pidFileBecomes(""), says: ready},
		{name: "PID file becomes nonsense", play: pidFileBecomes("nonsense"), says: ready},
		{name: "PID file becomes another's", play: pidFileBecomes("1\n"), says: ready},

		{name: "PID file is another instance's", play: twoInstances, says: ready},

		// The log.
		{name: "log is not read", set: logTo(false), play: restarts, says: `^outcome .* error=<nil>`},
		{name: "log's reader is gone", set: logTo(true), play: restarts, says: `^outcome .* error=<nil>`},

		// The service manager.
		{name: "manager is not there", env: notify("/nonexistent"), play: restarts, says: ready},
		{name: "manager's socket has too long a name", env: notify("/" + strings.Repeat("x", 200)), play: restarts, says: ready},
		{name: "manager's socket has no name", env: notify("x"), play: restarts, says: ready},
		{name: "manager is a file", env: notify("/etc/passwd"), play: restarts, says: ready},
		{name: "manager does not read", env: managerThatDoesNotRead, play: restarts, says: ready},

		// Variables.
		{name: "LISTEN_FDS for nobody", env: env("LISTEN_FDS=5"), play: restarts, says: ready},
		{name: "LISTEN_FDS for another", env: env("LISTEN_FDS=5", "LISTEN_PID=1", "LISTEN_FDNAMES=a:b"), play: restarts, says: ready},
		{name: "LISTEN_FDS is nonsense for another", env: env("LISTEN_FDS=x", "LISTEN_PID=1"), play: restarts, says: ready},
		{name: "GRACE_CONTROL is not open", env: env("GRACE_CONTROL=99"), says: "is not an inherited descriptor"},
		{name: "GRACE_CONTROL is no number", env: env("GRACE_CONTROL=x"), says: "is not an inherited descriptor"},
		{name: "GRACE_CONTROL is negative", env: env("GRACE_CONTROL=-1"), says: "is not an inherited descriptor"},
		{name: "GRACE_CONTROL is the standard input", env: env("GRACE_CONTROL=0"), says: "is not an inherited descriptor"},
		{name: "GRACE_SUPERVISOR is the standard input", env: env("GRACE_SUPERVISOR=0"), says: "is not an inherited descriptor"},
		{name: "GRACE_SUPERVISOR is not open", env: env("GRACE_SUPERVISOR=99"), says: "is not an inherited descriptor"},
		{name: "LISTEN_FDS is nonsense", env: env("LISTEN_FDS=x"), says: "is not a number of descriptors"},
		{name: "GRACE_CONTROL is silent", set: silentPredecessor, play: silentPredecessorEnds, says: "what the predecessor has to say is not known"},
		{name: "WATCHDOG_USEC is nonsense", env: env("WATCHDOG_USEC=x", "WATCHDOG_PID=y"), play: restarts, says: ready},

		// Limits.
		{name: "no process may be started", set: ofAnotherUser, play: noProcess, says: "restart failed: .*resource temporarily unavailable"},
		{name: "no descriptor is left", play: few(0), says: "restart failed: .*too many open files"},
		{name: "one descriptor is left", play: few(1), says: "restart failed: .*too many open files"},
		// Those are not enough if no connection of the load ends meanwhile, which would leave more.
		{name: "two descriptors are left", play: alone(few(2)), says: "restart failed: .*too many open files"},
		{name: "three descriptors are left", play: alone(few(3)), says: "restart failed: .*too many open files"},
		{name: "successor may have six descriptors", play: becomes(limited("-n 6")), says: before + "exit status"},
		{name: "successor may have eight descriptors", play: becomes(limited("-n 8")), says: before + "exit status"},
		{name: "successor has no memory", play: becomes(limited("-v 50000")), says: before},
		{name: "successor has no stack", play: becomes(limited("-s 8")), says: before},
		{name: "successor has no processor time", play: becomes(limited("-t 0")), says: before},
	}
}

const (
	ready    = `restart: pid \d+ is ready after`
	silent   = "can say no more over the control socket"
	orphaned = "the predecessor ended before we were ready"
)

// bounded ends what does not end by itself.
var bounded = []string{"-term-timeout", "3s"}

// restarts is a restart that works.
func restarts(t *trial) *driver.Process { return t.restart(t.first) }

func env(variables ...string) func(t *trial) []string {
	return func(*trial) []string { return variables }
}

func notify(socket string) func(t *trial) []string { return env("NOTIFY_SOCKET=" + socket) }

func managerThatDoesNotRead(t *trial) []string {
	socket := filepath.Join(t.TempDir(), "n")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	full, err := net.DialUnix("unixgram", nil, c.LocalAddr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { full.Close() })
	full.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	for err == nil {
		_, err = full.Write([]byte("X=1"))
	}
	return []string{"NOTIFY_SOCKET=" + socket}
}

func pidFile(path string) []string { return []string{"-pidfile", path} }

// pidFileBecomes has somebody change the PID file, or remove it, before a restart.
func pidFileBecomes(content string) func(t *trial) *driver.Process {
	return func(t *trial) *driver.Process {
		path := filepath.Join(t.dir, "pid")
		os.Remove(path)
		if content != "" {
			writeProgram(t, path, []byte(content), 0o644)
		}
		next := t.restart(t.first)
		if pid := pidIn(t.T, path); pid != next.Pid {
			t.Errorf("the PID file names %d, want %d", pid, next.Pid)
		}
		return next
	}
}

// client0 has a client that says something, and then nothing, over a restart.
func client0(says string) func(t *trial) *driver.Process {
	return func(t *trial) *driver.Process {
		c := dial(t, t.first.Addrs[0])
		c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		io.WriteString(c, says)
		n := t.s.Count("^ready ") + 1
		t.first.Signal(syscall.SIGUSR2)
		next := t.s.Ready(n)
		c.Close()
		t.first.WaitExit(0)
		return next
	}
}

func clientResets(t *trial) *driver.Process {
	for _, text := range []string{"", "GET /pid HT", "GET /sleep?duration=1h HTTP/1.1\r\nHost: x\r\n\r\n"} {
		c := dial(t, t.first.Addrs[0])
		io.WriteString(c, text)
		c.Conn.(*net.TCPConn).SetLinger(0)
		time.AfterFunc(50*time.Millisecond, func() { c.Close() }) // in the midst of the restart, or before
	}
	return t.restart(t.first)
}

func clientsComeAndGo(t *trial) *driver.Process {
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range 4 {
		clients.Add(1)
		go func() {
			defer clients.Done()
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
				}
				if c, err := net.Dial("tcp", t.first.Addrs[0]); err != nil {
					t.Error(err)
				} else {
					c.(*net.TCPConn).SetLinger(0)
					c.Close()
				}
			}
		}()
	}
	defer clients.Wait()
	defer close(stop)
	return t.restart(t.first)
}

// hooked has a hook misbehave in a restart that works all the same.
func hooked(fault string) func(t *trial) *driver.Process {
	return func(t *trial) *driver.Process {
		t.faults.Set(t, fault)
		next := t.restart(t.first)
		t.s.Line("^plays .*fault=" + fault)
		t.faults.Clear(t, fault)
		return next
	}
}

// moved has OnMove misbehave when it gets a connection.
func moved(fault string) func(t *trial) *driver.Process {
	return func(t *trial) *driver.Process {
		c := dial(t, t.first.Addrs[0])
		io.WriteString(c, "GET /move HTTP/1.1\r\nHost: moves\r\n\r\n")
		if resp, err := http.ReadResponse(c.answers, nil); err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("hijacking: %v, %v", resp, err)
		}
		t.faults.Set(t, fault)
		next := t.restart(t.first)
		t.s.Line("^plays .*fault=" + fault)
		if strings.HasSuffix(fault, "hang") {
			c.Close()
		} else {
			c.SetReadDeadline(time.Now().Add(driver.Patience))
			if b, err := c.answers.ReadByte(); err != io.EOF {
				t.Errorf("nobody serves the connection, and it brings %q, %v", b, err)
			}
		}
		t.faults.Clear(t, fault)
		return next
	}
}

// anotherUser is nobody's.
const anotherUser = 54321

// ofAnotherUser has the server run by a user for whom limits hold.
func ofAnotherUser(t *trial, c *driver.Command) {
	if os.Getuid() != 0 {
		t.Skip("only root can be another user")
	}
	if _, err := exec.LookPath("prlimit"); err != nil {
		t.Skip("no prlimit here")
	}
	for _, dir := range []string{t.dir, string(t.faults), filepath.Dir(string(t.link))} {
		if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(t.dir, anotherUser, anotherUser); err != nil {
		t.Fatal(err)
	}
	c.User = anotherUser
}

func noProcess(t *trial) *driver.Process {
	limit := func(to string) {
		cmd := exec.Command("prlimit", "--pid", strconv.Itoa(t.first.Pid), "--nproc="+to+":")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: anotherUser, Gid: anotherUser}}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("prlimit: %v: %s", err, out)
		}
	}
	limit("1")
	t.failedRestart()
	limit("1000")
	return t.first
}

// signals ends the server by signals: while a successor starts, if there is a fault that
// keeps it from being ready.
func signals(fault string, signals ...syscall.Signal) func(t *trial) *driver.Process {
	return func(t *trial) *driver.Process {
		t.load.Ending()
		switch fault {
		case "":
		case "stranger":
			t.link.Move(t, driver.Stranger(t))
			t.first.Signal(syscall.SIGUSR2)
			t.s.Line("^playing")
		default:
			t.faults.Set(t, fault)
			t.first.Signal(syscall.SIGUSR2)
			t.s.Line("^waiting|restart: asked for")
		}
		begun := time.Now()
		for _, sig := range signals {
			syscall.Kill(t.first.Pid, sig)
		}
		t.first.WaitExit(0)
		t.took(begun, signals[0])
		return nil
	}
}

func secondRestartSignal(t *trial) *driver.Process {
	t.faults.Set(t, "slow")
	t.first.Signal(syscall.SIGUSR2)
	t.s.Line("^waiting")
	t.first.Signal(syscall.SIGUSR2)
	t.s.Line("restart signal ignored")
	t.faults.Clear(t, "slow")
	return t.s.Ready(2)
}

func signalInTheDrain(sig syscall.Signal) func(t *trial) *driver.Process {
	return func(t *trial) *driver.Process {
		t.first.Signal(syscall.SIGUSR2)
		second := t.s.Ready(2)
		t.s.Line("drains ")
		t.first.Signal(sig)
		return second
	}
}

func restartInTheDrain(t *trial) *driver.Process {
	t.first.Signal(syscall.SIGUSR2)
	t.s.Ready(2)
	t.s.Line("drains ")
	t.first.Signal(syscall.SIGUSR2)
	third := t.s.Ready(3)
	t.s.Line(fmt.Sprintf("restart: pid %d is ready", third.Pid)) // the second accepts no more
	return third
}

// predecessorDies has the predecessor killed while it waits for the successor, which it
// may not have read yet to be ready.
func predecessorDies(sig syscall.Signal, told bool) func(t *trial) *driver.Process {
	return func(t *trial) *driver.Process {
		if told {
			second, _ := t.first.FreezeInRestart(t.faults)
			t.first.Signal(sig)
			return second
		}
		t.faults.Set(t, "slow")
		t.first.Signal(syscall.SIGUSR2)
		t.s.Line("^waiting")
		t.first.Signal(sig)
		t.first.Wait()
		t.faults.Clear(t, "slow")
		return t.s.Ready(2)
	}
}

func predecessorDiesDraining(t *trial) *driver.Process {
	c := dial(t, t.first.Addrs[0])
	io.WriteString(c, "GET /hijack HTTP/1.1\r\nHost: held\r\n\r\n")
	if _, err := c.answers.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	t.first.Signal(syscall.SIGUSR2)
	second := t.s.Ready(2)
	t.s.Line("drains ")
	t.first.Signal(syscall.SIGKILL)
	return second
}

// limit returns how many descriptors the first process may have, and sets it.
func (t *trial) limit(to *syscall.Rlimit) (was syscall.Rlimit) {
	_, _, errno := syscall.Syscall6(syscall.SYS_PRLIMIT64, uintptr(t.first.Pid), syscall.RLIMIT_NOFILE,
		uintptr(unsafe.Pointer(to)), uintptr(unsafe.Pointer(&was)), 0, 0)
	if errno != 0 {
		t.Fatalf("prlimit: %v", errno)
	}
	return was
}

func killedInStandby(t *trial) *driver.Process {
	t.first.Signal(syscall.SIGUSR2)
	second := t.s.Ready(2)
	t.s.Line("stands by")
	second.Signal(syscall.SIGKILL)
	t.s.Line("serving again")
	return t.first
}

func stoppedWhenReady(t *trial) *driver.Process {
	t.faults.Set(t, "stop-ready")
	t.first.Signal(syscall.SIGUSR2)
	second := t.s.Ready(2)
	t.faults.Clear(t, "stop-ready")
	driver.Eventually(t, "the successor to be stopped", func() bool { return second.State() == "T" })
	second.Signal(syscall.SIGKILL)
	t.s.Line("serving again")
	return t.first
}

// logTo has the standard error be a pipe that is full, or has no reader.
func logTo(nobody bool) func(t *trial, c *driver.Command) {
	return func(t *trial, c *driver.Command) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close(); w.Close() })
		if nobody {
			r.Close()
		} else {
			w.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
			w.Write(make([]byte, 1<<20))
		}
		c.Args = append([]string{"-c", `exec "$0" "$@" 2>&3 3>&-`, c.Path}, c.Args...)
		c.Path = "/bin/sh"
		c.ExtraFiles = []*os.File{w}
	}
}

// silentPredecessor starts the server with a control socket at which nobody talks.
func silentPredecessor(t *trial, c *driver.Command) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "control")
	t.Cleanup(func() { theirs.Close() })
	t.silent = os.NewFile(uintptr(fds[0]), "control")
	c.ExtraFiles = []*os.File{theirs}
	c.Env = []string{"LISTEN_FDS=0", "GRACE_CONTROL=3"}
}

func silentPredecessorEnds(t *trial) *driver.Process {
	t.silent.Close()
	return t.restart(t.first)
}

// twoInstances has another instance started with the same PID file.
func twoInstances(t *trial) *driver.Process {
	path := filepath.Join(t.dir, "pid")
	other := driver.Start(t, httpArgs("-pidfile", path)...)
	p := other.Ready(1)
	other.Line(fmt.Sprintf("writing the PID file .*: it belongs to pid %d, which runs the same program; serving without it", t.first.Pid))
	p.Signal(syscall.SIGTERM)
	p.WaitExit(0)
	if pid := pidIn(t.T, path); pid != t.first.Pid {
		t.Errorf("the PID file names %d, want %d", pid, t.first.Pid)
	}
	return t.restart(t.first)
}

// alone plays without the load, when the process has as few descriptors open as a fresh one.
func alone(play func(t *trial) *driver.Process) func(t *trial) *driver.Process {
	return func(t *trial) *driver.Process {
		t.load.NothingLost()
		driver.Eventually(t, "the load's connections to be closed", func() bool { return len(t.first.Descriptors()) <= t.fresh.descriptors })
		serves := play(t)
		t.load = driver.StartPacedLoad(t, t.first.Addrs[0], "/pid", pause)
		return serves
	}
}

// few lets the process open so many descriptors more while it restarts.
func few(n int) func(t *trial) *driver.Process {
	return func(t *trial) *driver.Process {
		last := 0
		free := 0
		open := t.first.Descriptors()
		for fd := 0; ; fd++ {
			if slices.ContainsFunc(open, func(d driver.Descriptor) bool { return d.FD == fd }) {
				continue
			}
			if free++; free > n {
				last = fd
				break
			}
		}
		old := t.limit(nil)
		t.limit(&syscall.Rlimit{Cur: uint64(last), Max: old.Max})
		t.failedRestart()
		t.limit(&old)
		return t.first
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
	played := driver.Some(all, 24)
	for _, f := range played {
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
	t.Logf("%d of %d rows", len(played), len(all))
}
