//go:build linux

package grace_test

import (
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
	"syscall"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/testserver/driver"
)

// A manager is what listens at NOTIFY_SOCKET. As systemd does for
// NotifyAccess=main, it trusts the main process alone, which is the first that
// it hears of, and then whichever a trusted one names with MAINPID.
type manager struct {
	t      *testing.T
	socket string // value of NOTIFY_SOCKET
	conn   *net.UnixConn

	mu      sync.Mutex // guards what follows
	changed chan struct{}
	main    int
	states  []state
	seen    int // states that next has passed
}

// A state is one datagram.
type state struct {
	from    int // process id of the sender
	at      time.Time
	text    string
	fds     int
	trusted bool
}

// lines returns those that are not STATUS=.
func (s state) lines() (lines []string) {
	for _, line := range strings.Split(s.text, "\n") {
		if !strings.HasPrefix(line, "STATUS=") {
			lines = append(lines, line)
		}
	}
	return lines
}

// status returns what follows STATUS=.
func (s state) status() string {
	_, status, _ := strings.Cut("\n"+s.text, "\nSTATUS=")
	status, _, _ = strings.Cut(status, "\n")
	return status
}

func (s state) String() string {
	what := ""
	if !s.trusted {
		what = " (not trusted)"
	}
	if s.fds > 0 {
		what += fmt.Sprintf(" with %d descriptors", s.fds)
	}
	return fmt.Sprintf("%s pid %d%s: %s", s.at.Format("05.000"), s.from, what, strings.ReplaceAll(s.text, "\n", " "))
}

// newManager listens at a path.
func newManager(t *testing.T) *manager {
	// Not t.TempDir(), whose path may be too long for a socket.
	dir, err := os.MkdirTemp("", "notify")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return newManagerAt(t, filepath.Join(dir, "socket"))
}

func newManagerAt(t *testing.T, socket string) *manager {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_PASSCRED, 1)
	})
	if err != nil {
		t.Fatal(err)
	}
	m := &manager{t: t, socket: socket, conn: conn, changed: make(chan struct{})}
	go m.receive()
	t.Cleanup(func() {
		conn.Close()
		if t.Failed() {
			t.Logf("the manager heard:\n%s", m.heard())
		}
	})
	return m
}

// start starts the test server for this manager.
func (m *manager) start(args ...string) *driver.Server {
	return m.startWith(nil, args...)
}

func (m *manager) startWith(env []string, args ...string) *driver.Server {
	m.t.Helper()
	env = append([]string{"NOTIFY_SOCKET=" + m.socket}, env...)
	return driver.Command{Args: args, Env: env}.Start(m.t)
}

func (m *manager) receive() {
	b, oob := make([]byte, 64<<10), make([]byte, 4096)
	for {
		n, oobn, _, _, err := m.conn.ReadMsgUnix(b, oob)
		if err != nil {
			return
		}
		s := state{at: time.Now(), text: string(b[:n])}
		messages, err := syscall.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			m.t.Error(err)
		}
		for _, msg := range messages {
			if cred, err := syscall.ParseUnixCredentials(&msg); err == nil {
				s.from = int(cred.Pid)
			}
			if fds, err := syscall.ParseUnixRights(&msg); err == nil {
				s.fds += len(fds)
				for _, fd := range fds {
					syscall.Close(fd)
				}
			}
		}
		m.hear(s)
	}
}

func (m *manager) hear(s state) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.main == 0 {
		m.main = s.from
	}
	s.trusted = s.from == m.main
	if s.trusted {
		for _, line := range s.lines() {
			if pid, ok := strings.CutPrefix(line, "MAINPID="); ok {
				if n, _ := strconv.Atoi(pid); runs(n) { // systemd refuses any other
					m.main = n
				}
			}
		}
	}
	m.states = append(m.states, s)
	close(m.changed)
	m.changed = make(chan struct{})
}

// runs reports whether a process does, and has not ended unseen.
func runs(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// next waits for the next state from a trusted process that has a line matching
// the pattern. Those before it count as seen.
func (m *manager) next(pattern string) state {
	m.t.Helper()
	expr := regexp.MustCompile("(?m)^(?:" + pattern + ")$")
	timeout := time.After(driver.Patience)
	for {
		m.mu.Lock()
		changed := m.changed
		for m.seen < len(m.states) {
			s := m.states[m.seen]
			m.seen++
			if s.trusted && expr.MatchString(s.text) {
				m.mu.Unlock()
				return s
			}
		}
		m.mu.Unlock()
		select {
		case <-changed:
		case <-timeout:
			m.t.Fatalf("no state matching %q from the main process", pattern)
		}
	}
}

// skip lets next look at later states only.
func (m *manager) skip() {
	m.mu.Lock()
	m.seen = len(m.states)
	m.mu.Unlock()
}

// all returns what was heard.
func (m *manager) all() []state {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.states)
}

func (m *manager) mainPID() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.main
}

func (m *manager) heard() string {
	var lines []string
	for _, s := range m.all() {
		lines = append(lines, s.String())
	}
	return strings.Join(lines, "\n")
}

// told returns the lines of the trusted states, without STATUS= and
// EXTEND_TIMEOUT_USEC=, with names for the process ids and # for times.
func (m *manager) told(names map[int]string) (told []string) {
	for _, s := range m.all() {
		line := ""
		for _, l := range s.lines() {
			name, value, _ := strings.Cut(l, "=")
			switch name {
			case "EXTEND_TIMEOUT_USEC":
				continue
			case "MAINPID":
				pid, _ := strconv.Atoi(value)
				value = names[pid]
			case "MONOTONIC_USEC":
				value = "#"
			}
			line += " " + name + "=" + value
		}
		if s.trusted && line != "" {
			told = append(told, names[s.from]+":"+line)
		}
	}
	return told
}

// A held request is under way until it is released.
type held struct {
	t      *testing.T
	body   *io.PipeWriter
	answer chan int
}

// hold begins a request, and returns when it is being handled.
func hold(t *testing.T, addr string) *held {
	t.Helper()
	body, w := io.Pipe()
	h := &held{t: t, body: w, answer: make(chan int, 1)}
	began := make(chan struct{})
	req, err := http.NewRequest("POST", "http://"+addr+"/echo", body)
	if err != nil {
		t.Fatal(err)
	}
	// The handler asks for the body.
	req.Header.Set("Expect", "100-continue")
	req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		Got100Continue: func() { close(began) },
	}))
	go func() {
		transport := &http.Transport{DisableKeepAlives: true, ExpectContinueTimeout: driver.Patience}
		resp, err := (&http.Client{Transport: transport, Timeout: 2 * driver.Patience}).Do(req)
		if err != nil {
			t.Errorf("a request that is under way: %v", err)
			h.answer <- 0
			return
		}
		resp.Body.Close()
		pid, _ := strconv.Atoi(resp.Header.Get("Pid"))
		h.answer <- pid
	}()
	t.Cleanup(func() { w.Close() })
	select {
	case <-began:
	case <-h.answer:
		t.FailNow()
	}
	return h
}

// release lets the handler go on.
func (h *held) release() { h.body.Close() }

// by waits for the answer, and fails the test if it is not from this process.
func (h *held) by(p *driver.Process) {
	h.t.Helper()
	if pid := <-h.answer; pid != p.Pid {
		h.t.Errorf("pid %d answered the request that pid %d had begun", pid, p.Pid)
	}
}

// finish releases the request, and checks who answers.
func (h *held) finish(p *driver.Process) {
	h.t.Helper()
	h.release()
	h.by(p)
}

// sleeper begins a request that takes d, and returns when the server has it. The
// channel brings the process id that answers, or 0.
func sleeper(t *testing.T, s *driver.Server, addr string, d time.Duration) <-chan int {
	t.Helper()
	mark := s.Mark()
	answer, done := make(chan int, 1), make(chan struct{})
	t.Cleanup(func() { <-done })
	req, err := http.NewRequestWithContext(t.Context(), "GET", fmt.Sprintf("http://%s/sleep?duration=%v", addr, d), nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(done)
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Do(req)
		if err != nil {
			if t.Context().Err() == nil {
				t.Errorf("a request that takes %v: %v", d, err)
			}
			answer <- 0
			return
		}
		resp.Body.Close()
		pid, _ := strconv.Atoi(resp.Header.Get("Pid"))
		answer <- pid
	}()
	s.Line("^sleeping", mark)
	return answer
}

// managed starts an HTTP server with a service manager of its own.
func managed(t *testing.T, args ...string) (m *manager, s *driver.Server, p *driver.Process) {
	t.Helper()
	m = newManager(t)
	s = m.start(httpArgs(args...)...)
	return m, s, s.Ready(1)
}

// managedFaulty is managed with a directory of faults to play.
func managedFaulty(t *testing.T, args ...string) (m *manager, s *driver.Server, p *driver.Process, faults driver.Faults) {
	t.Helper()
	faults = driver.NewFaults(t)
	m, s, p = managed(t, append([]string{"-faults", string(faults)}, args...)...)
	return m, s, p, faults
}

// httpArgs is the command line of most tests here.
func httpArgs(more ...string) []string {
	return append([]string{"-mode", "http", "-listen", "127.0.0.1:0"}, more...)
}

func monotonicUsec(t *testing.T) int64 {
	b, err := os.ReadFile("/proc/uptime")
	if err != nil {
		t.Fatal(err)
	}
	seconds, err := strconv.ParseFloat(strings.Fields(string(b))[0], 64)
	if err != nil {
		t.Fatal(err)
	}
	return int64(seconds * 1e6)
}

func TestManagerHearsOfEachStepFromWhomItTrusts(t *testing.T) {
	t.Parallel()
	m, s, a := managed(t)
	serving := m.next("READY=1")
	if want := fmt.Sprintf("Serving with pid %d", a.Pid); serving.status() != want {
		t.Errorf("status %q, want %q", serving.status(), want)
	}

	before := monotonicUsec(t)
	a.Signal(syscall.SIGUSR2)
	reloading := m.next("RELOADING=1")
	after := monotonicUsec(t)
	_, usec, _ := strings.Cut(reloading.lines()[1], "MONOTONIC_USEC=")
	// /proc/uptime is in hundredths of a second.
	if n, _ := strconv.ParseInt(usec, 10, 64); n < before-1 || n > after+10_000 {
		t.Errorf("MONOTONIC_USEC=%s was sent between %d and %d", usec, before, after)
	}
	b := s.Ready(2)
	moved := m.next("MAINPID=" + strconv.Itoa(b.Pid))
	if want := fmt.Sprintf("Serving with pid %d", b.Pid); moved.status() != want {
		t.Errorf("status %q, want %q", moved.status(), want)
	}
	a.WaitExit(0)
	b.Signal(syscall.SIGTERM)
	stopping := m.next("STOPPING=1")
	if !strings.HasPrefix(stopping.status(), "Stopping") {
		t.Errorf("status %q, want that it is stopping", stopping.status())
	}
	b.WaitExit(0)

	got := m.told(map[int]string{a.Pid: "A", b.Pid: "B"})
	want := []string{
		"A: READY=1",
		"A: RELOADING=1 MONOTONIC_USEC=#",
		"A: READY=1",
		"A: MAINPID=B READY=1 WATCHDOG=1",
		"B: READY=1",
		"B: STOPPING=1",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the manager was told\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestMainProcessIsNamedByTheOneThatIsTrustedWhileItRuns(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	m := newManager(t)
	s := m.start(httpArgs()...)
	for n := 1; n <= 4; n++ {
		p := s.Ready(n)
		// A request holds the predecessor, which stays the main process until its end.
		h := hold(t, p.Addrs[0])
		p.Signal(syscall.SIGUSR2)
		next := s.Ready(n + 1)
		m.next(fmt.Sprintf("STATUS=Serving with pid %d; .*", next.Pid))
		if main := m.mainPID(); main != p.Pid {
			t.Errorf("pid %d is the main process while pid %d drains", main, p.Pid)
		}
		h.release()
		told := m.next("MAINPID=" + strconv.Itoa(next.Pid))
		if told.from != p.Pid {
			t.Errorf("pid %d said that pid %d is the main process, want pid %d, its predecessor", told.from, next.Pid, p.Pid)
		}
		// A reload is over when the main process says so: systemd may have found the new
		// one in the PID file, before it reads what the old one says.
		if ready := m.next("READY=1"); ready.from != next.Pid {
			t.Errorf("pid %d says that it is ready, want pid %d, the main process now", ready.from, next.Pid)
		}
		h.by(p)
		p.WaitExit(0)
	}
}

// managedDrain starts a service whose first generation drains, and is the main process:
// it holds a connection.
func managedDrain(t *testing.T) (m *manager, s *driver.Server, first, second *driver.Process, held *client) {
	t.Helper()
	m = newManager(t)
	s = m.start("-listen", "127.0.0.1:0")
	first = s.Ready(1)
	held = dial(t, first.Addrs[0])
	held.servedBy(first)
	first.Signal(syscall.SIGUSR2)
	second = s.Ready(2)
	m.next(fmt.Sprintf(`(?s).*STATUS=Serving with pid %d.*`, second.Pid))
	return m, s, first, second, held
}

// Only a main process can name its successor. So one that has nothing to drain waits until
// its predecessor, which still drains, has named it.
func TestMainProcessIsHandedDownWhileTheFirstDrains(t *testing.T) {
	t.Parallel()
	m, s, first, second, c := managedDrain(t)
	thaw := first.Freeze() // it is slow to hear of the third
	second.Signal(syscall.SIGUSR2)
	third := s.Ready(3)
	select {
	case <-second.Exited():
	case <-time.After(500 * time.Millisecond):
	}
	thaw()
	<-second.Exited()
	c.Close()
	first.WaitExit(0)
	if m.mainPID() != third.Pid {
		t.Errorf("pid %d is the main process, pid %d serves", m.mainPID(), third.Pid)
	}
}

// Nor does it matter how late one that is in between hears that it is the main process.
func TestMainProcessIsHandedDownByOneThatIsNamedLate(t *testing.T) {
	t.Parallel()
	m, s, first, second, one := managedDrain(t)
	two := dialServedBy(t, first.Addrs[0], second, first)
	thaw := first.Freeze()
	second.Signal(syscall.SIGUSR2)
	third := s.Ready(3)
	s.Line(fmt.Sprintf(`restart: pid %d is ready`, third.Pid))
	third.Signal(syscall.SIGUSR2)
	fourth := s.Ready(4)
	s.Line(fmt.Sprintf(`restart: pid %d is ready`, fourth.Pid))
	select {
	case <-third.Exited():
	case <-time.After(300 * time.Millisecond): // the second has heard of the fourth
	}
	thaw()
	<-third.Exited()
	one.Close()
	first.WaitExit(0)
	two.Close()
	second.WaitExit(0)
	if m.mainPID() != fourth.Pid {
		t.Errorf("pid %d is the main process, pid %d serves", m.mainPID(), fourth.Pid)
	}
}

// One that has nothing to drain waits to be named as the main process, so that it can
// name its successor. If that fails meanwhile, it serves, and is the main process.
func TestOneThatWaitsToBeTheMainProcessServesAgain(t *testing.T) {
	t.Parallel()
	m, s, first, second, c := managedDrain(t)
	thaw := first.Freeze() // it is slow to hear of the third
	second.Signal(syscall.SIGUSR2)
	third := s.Ready(3)
	s.Line(fmt.Sprintf(`restart: pid %d is ready`, third.Pid))
	select {
	case <-second.Exited():
	case <-time.After(300 * time.Millisecond): // it is drained
	}
	third.Signal(syscall.SIGKILL)
	s.Line(fmt.Sprintf(`serving again with pid %d`, second.Pid))
	thaw()
	m.next("MAINPID=" + strconv.Itoa(second.Pid))
	c.Close()
	first.WaitExit(0)
	servedBy(t, first.Addrs[0], second)
	second.Signal(syscall.SIGUSR2)
	fourth := s.Ready(4)
	second.WaitExit(0)
	if m.mainPID() != fourth.Pid {
		t.Errorf("pid %d is the main process, pid %d serves", m.mainPID(), fourth.Pid)
	}
}

// One that has named its successor is not the main process any more, whatever becomes of
// its own predecessor: what is to stop it is not meant for the service.
func TestMainProcessThatHasNamedAnotherStaysSo(t *testing.T) {
	t.Parallel()
	m := newManager(t)
	s := m.start("-listen", "127.0.0.1:0")
	p := []*driver.Process{s.Ready(1)}
	var held []*client
	for n := range 3 {
		held = append(held, dialServedBy(t, p[0].Addrs[0], p[n], p[:n]...))
		p[n].Signal(syscall.SIGUSR2)
		p = append(p, s.Ready(n+2))
		s.Line(fmt.Sprintf(`restart: pid %d is ready`, p[n+1].Pid))
	}
	m.next("(?s)MAINPID=" + strconv.Itoa(p[2].Pid) + ".*")
	held[0].Close()
	p[0].WaitExit(0)
	select {
	case <-p[1].Exited():
	case <-time.After(200 * time.Millisecond): // it has seen that
	}
	p[1].Signal(syscall.SIGTERM)
	s.Line(fmt.Sprintf(`terminated: pid %d is ending already; left: 1 connection`, p[1].Pid))
	held[1].Close()
	p[1].WaitExit(0)
	servedBy(t, p[0].Addrs[0], p[3])
	held[2].servedBy(p[2])
	if n := s.Count("the service is to stop"); n > 0 {
		t.Error("the service was stopped")
	}
}

func TestFailedRestartIsReadyAgainAndSaysWhy(t *testing.T) {
	t.Parallel()
	for fault, why := range driver.SomeOf(map[string]string{
		"exit":     "exit status 2",
		"kill":     "signal: killed",
		"hang":     "not ready within",
		"prestart": "before the start",
	}, 8) {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			m := newManager(t)
			faults := driver.NewFaults(t)
			args := httpArgs("-faults", string(faults))
			if fault == "hang" {
				args = append(args, "-start-timeout", "4s")
			}
			s := m.start(args...)
			p := s.Ready(1)
			m.next("READY=1")
			faults.Set(t, fault)
			p.Signal(syscall.SIGUSR2)
			m.next("RELOADING=1")
			failed := m.next("READY=1")
			if status := failed.status(); !strings.Contains(status, why) || !strings.Contains(status, strconv.Itoa(p.Pid)) {
				t.Errorf("status %q, want why it failed (%q) and who serves (pid %d)", status, why, p.Pid)
			}
			if m.mainPID() != p.Pid {
				t.Errorf("the main process is pid %d, want pid %d", m.mainPID(), p.Pid)
			}

			// And the next one works.
			faults.Clear(t, fault)
			p.Signal(syscall.SIGUSR2)
			m.next("RELOADING=1")
			m.next("MAINPID=" + strconv.Itoa(s.Ready(2).Pid))
		})
	}
}

func TestFailureAfterReadyLeavesALivingMainProcess(t *testing.T) {
	t.Parallel()
	m, s, p, faults := managedFaulty(t)
	h := hold(t, p.Addrs[0])
	faults.Set(t, "kill-ready")
	p.Signal(syscall.SIGUSR2)
	s.Line("serving again")
	faults.Clear(t, "kill-ready")
	h.finish(p)

	// Whoever is the main process now is who gets the signal of the next reload.
	if main := m.mainPID(); main != p.Pid {
		t.Fatalf("the main process is pid %d, which has ended; pid %d serves", main, p.Pid)
	}
	p.Signal(syscall.SIGUSR2)
	m.next("MAINPID=" + strconv.Itoa(s.Ready(3).Pid))
}

func TestRestartSignalsWhileOneIsUnderWayDoNotStayReloading(t *testing.T) {
	t.Parallel()
	m, s, p, faults := managedFaulty(t)
	h := hold(t, p.Addrs[0])
	faults.Set(t, "slow")
	p.Signal(syscall.SIGUSR2)
	s.Line("^waiting")
	p.Signal(syscall.SIGUSR2)
	s.Line("restart signal ignored")
	faults.Clear(t, "slow")
	s.Ready(2)
	s.Line("is ready after")
	// To the one who was the main process a moment ago, and may be still.
	p.Signal(syscall.SIGUSR2)
	third := s.Ready(3)
	h.finish(p)
	p.WaitExit(0)
	m.next("MAINPID=" + strconv.Itoa(third.Pid))

	// Neither a manager that trusts only the main process, nor one that trusts all
	// (NotifyAccess=all), waits for more.
	for _, trusting := range []bool{false, true} {
		last := ""
		for _, st := range m.all() {
			for _, line := range st.lines() {
				if (st.trusted || trusting) && (line == "RELOADING=1" || line == "READY=1") {
					last = line
				}
			}
		}
		if last != "READY=1" {
			t.Errorf("the last thing that was said is %s (heard from all: %v)", last, trusting)
		}
	}
}

// The restart is over for whoever has seen the successor's first answer, though its
// predecessor may still have to hear of it.
func TestRestartSignalAfterTheFirstAnswerIsNotIgnored(t *testing.T) {
	t.Parallel()
	s := driver.Start(t, httpArgs()...)
	p := s.Ready(1)
	load := driver.StartLoad(t, p.Addrs[0], "/pid")
	restarts := driver.Times(20, 10)
	for n := range restarts {
		slow(t, s, p.Addrs[0]) // so that it is there to pass signals on
		p.Signal(syscall.SIGUSR2)
		load.Await(2*n + 2)
		p.Signal(syscall.SIGUSR2)
		load.Await(2*n + 3)
		p = s.Ready(2*n + 3)
	}
	load.NothingLost()
	if n := s.Count("restart signal ignored"); n != 0 {
		t.Errorf("%d of %d restart signals were ignored", n, 2*restarts)
	}
}

func TestStopSaysWhatIsLeftAndAsksForTime(t *testing.T) {
	t.Parallel()
	m, _, p := managed(t)
	h := hold(t, p.Addrs[0])
	time.AfterFunc(2500*time.Millisecond, h.release)
	stopped := time.Now()
	p.Signal(syscall.SIGTERM)
	stopping := m.next("STOPPING=1")
	if !strings.Contains(stopping.status(), "1 connection") {
		t.Errorf("status %q, want how many connections are left", stopping.status())
	}
	h.by(p)
	p.WaitExit(0)

	// At every moment of the drain the manager must be waiting.
	m.checkPatience(stopped, time.Now())
	updates := 0
	for _, st := range m.all() {
		if st.at.After(stopped) && strings.Contains(st.status(), "1 connection") {
			updates++
		}
	}
	if updates < 2 {
		t.Errorf("in a drain of 2.5 s the number of connections was told %d times, want one each second", updates)
	}
}

func TestStatusTellsOfThePredecessorsDrainUntilItIsOver(t *testing.T) {
	t.Parallel()
	m, s, a := managed(t)
	h := hold(t, a.Addrs[0])
	a.Signal(syscall.SIGUSR2)
	b := s.Ready(2)
	for range 2 {
		draining := m.next(fmt.Sprintf("STATUS=Serving with pid %d; pid %d drains 1 connection.*", b.Pid, a.Pid))
		if draining.from != a.Pid {
			t.Errorf("pid %d says so, want the predecessor, pid %d", draining.from, a.Pid)
		}
	}
	h.finish(a)
	a.WaitExit(0)
	m.next(fmt.Sprintf("STATUS=Serving with pid %d", b.Pid))
}

// What a predecessor tells of its drain comes to a process that may have handed over
// itself meanwhile, or serves again after that.
func TestStatusNamesTheOneThatServes(t *testing.T) {
	t.Parallel()
	m, s, a := managed(t)
	h := hold(t, a.Addrs[0])
	a.Signal(syscall.SIGUSR2)
	b := s.Ready(2)
	restart := func(n int) *driver.Process {
		b.Signal(syscall.SIGUSR2)
		next := s.Ready(n)
		m.next(fmt.Sprintf("STATUS=Serving with pid %d; pid %d drains .*", next.Pid, b.Pid))
		return next
	}
	restart(3).Signal(syscall.SIGKILL)
	m.next("MAINPID=" + strconv.Itoa(b.Pid))
	m.next(fmt.Sprintf("STATUS=Serving with pid %d; pid %d drains 1 connection.*", b.Pid, a.Pid))

	c := restart(4)
	h.finish(a)
	m.next("MAINPID=" + strconv.Itoa(c.Pid))
	latest := false
	for _, st := range m.all() {
		if strings.Contains(st.status(), fmt.Sprintf("Serving with pid %d", c.Pid)) {
			latest = true
		} else if latest && strings.Contains(st.status(), "Serving with pid") {
			t.Errorf("pid %d says %q after pid %d has taken over", st.from, st.status(), c.Pid)
		}
	}
}

func TestLongStartOfASuccessorAsksForTime(t *testing.T) {
	t.Parallel()
	m, s, p, faults := managedFaulty(t)
	m.next("READY=1")
	faults.Set(t, "slow")
	p.Signal(syscall.SIGUSR2)
	reloading := m.next("RELOADING=1")
	s.Line("^waiting")
	// A single request for time could come before systemd counts: it begins anew
	// when the command of ExecReload has ended.
	for range 3 {
		m.next(`EXTEND_TIMEOUT_USEC=\d+`)
	}
	faults.Clear(t, "slow")
	ready := m.next("READY=1")
	m.checkPatience(reloading.at, ready.at)
}

// checkPatience fails the test if a manager that waits one second
// (TimeoutStartSec=1, TimeoutStopSec=1) would not have waited from begin to end.
func (m *manager) checkPatience(begin, end time.Time) {
	m.t.Helper()
	until := begin.Add(time.Second)
	for _, st := range m.all() {
		if st.at.Before(begin) || st.at.After(end) {
			continue
		}
		for _, line := range st.lines() {
			usec, ok := strings.CutPrefix(line, "EXTEND_TIMEOUT_USEC=")
			if n, err := strconv.Atoi(usec); ok && err == nil && st.trusted && st.at.Before(until) {
				until = st.at.Add(time.Duration(n) * time.Microsecond)
			}
		}
	}
	if end.After(until) {
		m.t.Errorf("the manager's patience was over %v too early", end.Sub(until))
	}
}

func TestWatchdogMovesToTheSuccessor(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	const interval = 2 * time.Second
	m := newManager(t)
	s := m.startWith([]string{fmt.Sprintf("WATCHDOG_USEC=%d", interval.Microseconds())}, httpArgs()...)
	a := s.Ready(1)
	for range 2 {
		if ping := m.next("WATCHDOG=1"); ping.from != a.Pid {
			t.Errorf("pid %d is alive, says pid %d", a.Pid, ping.from)
		}
	}
	h := hold(t, a.Addrs[0])
	a.Signal(syscall.SIGUSR2)
	b := s.Ready(2)
	m.skip()
	if ping := m.next("WATCHDOG=1"); ping.from != a.Pid {
		t.Errorf("the main process drains, and pid %d says that it is alive, want pid %d", ping.from, a.Pid)
	}
	h.finish(a)
	moved := m.next("MAINPID=" + strconv.Itoa(b.Pid))
	for range 3 {
		if ping := m.next("WATCHDOG=1"); ping.from != b.Pid {
			t.Errorf("pid %d is alive, says pid %d", b.Pid, ping.from)
		}
	}
	a.WaitExit(0)

	var last time.Time
	for _, st := range m.all() {
		if !slices.Contains(st.lines(), "WATCHDOG=1") {
			continue
		}
		if st.trusted {
			if !last.IsZero() && st.at.Sub(last) > interval {
				t.Errorf("%v without WATCHDOG=1, want at most %v", st.at.Sub(last), interval)
			}
			last = st.at
		}
		// Where all are listened to, the predecessor must not speak for a
		// successor that hangs.
		if st.from == a.Pid && st.at.After(moved.at) {
			t.Errorf("the predecessor sent WATCHDOG=1 %v after it was no longer the main process", st.at.Sub(moved.at))
		}
	}
}

func TestWatchdogOfAnotherProcessIsNotOurs(t *testing.T) {
	t.Parallel()
	m := newManager(t)
	s := m.startWith([]string{"WATCHDOG_USEC=100000", "WATCHDOG_PID=" + strconv.Itoa(os.Getpid())}, httpArgs()...)
	p := s.Ready(1)
	m.next("READY=1")
	h := hold(t, p.Addrs[0])
	time.AfterFunc(500*time.Millisecond, h.release) // ten times as long as another would be told
	h.by(p)
	p.Signal(syscall.SIGTERM)
	m.next("STOPPING=1")
	for _, st := range m.all() {
		if slices.Contains(st.lines(), "WATCHDOG=1") {
			t.Errorf("told that the process is alive, which was asked of pid %d: %v", os.Getpid(), st)
		}
	}
}

// Who could answer for this process may stop or restart it, or keep it alive.
func TestOnlySuccessorsHearOfTheServiceManager(t *testing.T) {
	t.Parallel()
	driver.NeedProc(t)
	m := newManager(t)
	s := m.startWith([]string{"WATCHDOG_USEC=60000000"}, tcp()...)
	generation := s.Ready(1)
	for n := 2; n <= 3; n++ {
		c := dial(t, generation.Addrs[0])
		for _, v := range c.child().Env {
			if strings.HasPrefix(v, "NOTIFY_SOCKET") || strings.HasPrefix(v, "WATCHDOG_") {
				t.Errorf("a child of generation %d finds %s", n-1, v)
			}
		}
		c.Close()
		generation.Signal(syscall.SIGUSR2)
		next := s.Ready(n)
		for _, want := range []string{"NOTIFY_SOCKET=" + m.socket, "WATCHDOG_USEC=60000000"} {
			if !slices.Contains(next.Env(), want) {
				t.Errorf("generation %d was started without %s", n, want)
			}
		}
		generation.WaitExit(0)
		generation = next
	}
}

func TestAbstractNotifySocket(t *testing.T) {
	t.Parallel()
	m := newManagerAt(t, fmt.Sprintf("@grace-test/%d", os.Getpid()))
	s := m.start(httpArgs()...)
	p := s.Ready(1)
	m.next("READY=1")
	p.Signal(syscall.SIGUSR2)
	next := s.Ready(2)
	m.next("MAINPID=" + strconv.Itoa(next.Pid))
	next.Signal(syscall.SIGTERM)
	m.next("STOPPING=1")
}

func TestManagerThatIsGoneHarmsNothing(t *testing.T) {
	t.Parallel()
	m, s, p := managed(t)
	m.next("READY=1")
	m.conn.Close()
	os.Remove(m.socket)
	p.Signal(syscall.SIGUSR2)
	next := s.Ready(2)
	p.WaitExit(0)
	next.Signal(syscall.SIGTERM)
	next.WaitExit(0)
}

func TestListenersAreStored(t *testing.T) {
	t.Parallel()
	m, s, p := managed(t, "-listen", "127.0.0.1:0", "-store")
	for range 2 {
		if st := m.next("FDSTORE=1"); st.fds != 1 {
			t.Errorf("%v: want one descriptor", st)
		}
	}
	// The manager knows which it has; a successor that opens one more could not
	// be heard but as the main process.
	p.Signal(syscall.SIGUSR2)
	next := s.Ready(2)
	m.next("MAINPID=" + strconv.Itoa(next.Pid))
	if st := m.next("FDSTORE=1"); st.from != next.Pid {
		t.Errorf("%v: want it from pid %d", st, next.Pid)
	}
}

func TestStandbyStaysTheMainProcessUntilItIsOver(t *testing.T) {
	t.Parallel()
	m, s, a := managed(t, "-standby", "1500ms")
	a.Signal(syscall.SIGUSR2)
	m.next("RELOADING=1")
	ready := m.next("READY=1")
	b := s.Ready(2)
	if !strings.Contains(ready.status(), strconv.Itoa(b.Pid)) {
		t.Errorf("status %q, want that pid %d serves", ready.status(), b.Pid)
	}
	s.Line("stands by")
	moved := m.next("MAINPID=" + strconv.Itoa(b.Pid))
	if stood := moved.at.Sub(ready.at); stood < time.Second {
		t.Errorf("pid %d stood by for %v, want 1.5 s", a.Pid, stood)
	}
	a.WaitExit(0)
}

func TestStandbyTakesOverFromASuccessorThatFails(t *testing.T) {
	t.Parallel()
	m, s, a := managed(t, "-standby", "1m")
	a.Signal(syscall.SIGUSR2)
	b := s.Ready(2)
	s.Line("stands by")
	b.Signal(syscall.SIGKILL)
	s.Line("serving again")
	hold(t, a.Addrs[0]).finish(a)
	if m.mainPID() != a.Pid {
		t.Errorf("the main process is pid %d, want pid %d", m.mainPID(), a.Pid)
	}
	a.Signal(syscall.SIGTERM)
	m.next("STOPPING=1")
	a.WaitExit(0)
}

func TestStandbyPassesARestartSignalOn(t *testing.T) {
	t.Parallel()
	m, s, a := managed(t, "-standby", "1m")
	a.Signal(syscall.SIGUSR2)
	b := s.Ready(2)
	s.Line("stands by")
	m.skip()
	// It is the main process, and so gets what systemctl reload sends.
	a.Signal(syscall.SIGUSR2)
	c := s.Ready(3)
	// Type=notify-reload waits for this.
	m.next("RELOADING=1")
	m.next("READY=1")
	s.Line(fmt.Sprintf("^outcome pid=%d .*error=<nil>", b.Pid)) // it accepts no more
	hold(t, a.Addrs[0]).finish(c)
}

// It would not take over again from one that has handed over.
func TestStandbyEndsWhenTheSuccessorHasOne(t *testing.T) {
	t.Parallel()
	s := driver.Start(t, httpArgs("-standby", "1m")...)
	a := s.Ready(1)
	a.Signal(syscall.SIGUSR2)
	b := s.Ready(2)
	s.Line(fmt.Sprintf("pid %d is drained and stands by", a.Pid))
	mark := s.Mark()
	b.Signal(syscall.SIGUSR2)
	s.Ready(3)
	a.WaitExit(0)
	s.Line(fmt.Sprintf("pid %d is drained and stands by", b.Pid), mark)
}

func TestStopEndsStandby(t *testing.T) {
	t.Parallel()
	_, s, a := managed(t, "-standby", "1m")
	a.Signal(syscall.SIGUSR2)
	b := s.Ready(2)
	s.Line("stands by")
	h := hold(t, a.Addrs[0])
	// systemd signals all processes of a service, and when the main one has ended,
	// what is left of it again.
	a.Signal(syscall.SIGTERM)
	b.Signal(syscall.SIGTERM)
	s.Line(fmt.Sprintf("stopping pid %d", b.Pid))
	h.finish(b)
	b.Wait()
	a.WaitExit(0)
}

// A manager may signal the main process only.
func TestStopOfTheMainProcessStopsTheSuccessor(t *testing.T) {
	t.Parallel()
	m, s, a := managed(t, "-standby", "1m")
	a.Signal(syscall.SIGUSR2)
	b := s.Ready(2)
	s.Line("stands by")
	h := hold(t, a.Addrs[0])
	m.skip()
	a.Signal(syscall.SIGTERM)
	m.next("STOPPING=1")
	s.Line(fmt.Sprintf("the service is to stop: stopping pid %d", b.Pid))
	h.finish(b)
	b.Wait()
	a.WaitExit(0)
}

// The main process asks for time as long as it drains, whether its successor still does
// or not.
func TestStopAsksForTimeAfterTheSuccessorsEnd(t *testing.T) {
	t.Parallel()
	m, s, a := managed(t)
	h := hold(t, a.Addrs[0])
	a.Signal(syscall.SIGUSR2)
	b := s.Ready(2)
	s.Line(fmt.Sprintf("restart: pid %d is ready", b.Pid))
	a.Signal(syscall.SIGTERM)
	m.next("STOPPING=1")
	b.Wait()
	m.skip()
	for range 3 {
		m.next(`EXTEND_TIMEOUT_USEC=\d+`)
	}
	h.finish(a)
	a.WaitExit(0)
}

// The service manager's own patience ends with a successor that does not end.
func TestStopAsksForTimeNoLongerThanItMayTake(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	m := newManager(t)
	s := m.start(httpArgs("-standby", "1m", "-term-timeout", "1s")...)
	a := s.Ready(1)
	a.Signal(syscall.SIGUSR2)
	b := s.Ready(2)
	s.Line("stands by")
	thaw := b.Freeze()
	m.skip()
	begin := time.Now()
	a.Signal(syscall.SIGTERM)
	m.next("STOPPING=1")
	select {
	case <-a.Exited():
		t.Fatal("the main process ends before its successor")
	case <-time.After(4 * time.Second):
	}
	asked := m.all()
	for _, st := range asked {
		if strings.Contains(st.text, "EXTEND_TIMEOUT_USEC") && st.at.Sub(begin) > 2500*time.Millisecond {
			t.Errorf("%v after the signal it asks for more time", st.at.Sub(begin))
		}
	}
	thaw()
	b.Wait()
	a.WaitExit(0)
}

// Also when it is told to stop in the moment in which the successor gets ready.
func TestStopAsTheSuccessorGetsReady(t *testing.T) {
	for i := range driver.Times(20, 10) { // of what waits in the frozen process, any may be looked at first
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			_, _, a, faults := managedFaulty(t)
			h := hold(t, a.Addrs[0])
			b, thaw := a.FreezeInRestart(faults)
			a.Signal(syscall.SIGTERM)
			thaw()
			b.Wait()
			h.finish(a)
			a.WaitExit(0)
		})
	}
}

// The PID file.

// pidIn returns what the PID file says.
func pidIn(t *testing.T, path string) int {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSuffix(string(b), "\n"))
	if err != nil {
		t.Fatalf("%s contains %q", path, b)
	}
	return pid
}

func pidFileArgs(t *testing.T, more ...string) (path string, args []string) {
	path = filepath.Join(t.TempDir(), "pid")
	return path, httpArgs(append([]string{"-pidfile", path}, more...)...)
}

func TestPIDFileNamesTheReadyGeneration(t *testing.T) {
	t.Parallel()
	faults := driver.NewFaults(t)
	path, args := pidFileArgs(t, "-faults", string(faults))
	s := driver.Start(t, args...)
	a := s.Ready(1)
	if pid := pidIn(t, path); pid != a.Pid {
		t.Errorf("the PID file names pid %d, want pid %d", pid, a.Pid)
	}

	// Not before the successor is ready.
	faults.Set(t, "slow")
	h := hold(t, a.Addrs[0])
	a.Signal(syscall.SIGUSR2)
	s.Line("^waiting")
	if pid := pidIn(t, path); pid != a.Pid {
		t.Errorf("the PID file names pid %d, want pid %d, which still serves", pid, a.Pid)
	}
	faults.Clear(t, "slow")
	b := s.Ready(2)
	if pid := pidIn(t, path); pid != b.Pid {
		t.Errorf("the PID file names pid %d, want pid %d, which is ready", pid, b.Pid)
	}

	// A predecessor never removes it.
	h.finish(a)
	a.WaitExit(0)
	if pid := pidIn(t, path); pid != b.Pid {
		t.Errorf("the PID file names pid %d, want pid %d", pid, b.Pid)
	}
	b.Signal(syscall.SIGTERM)
	b.WaitExit(0)
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the last generation has ended, and its PID file is still there (%v)", err)
	}
}

func TestPIDFileIsNeverGoneNorHalfWritten(t *testing.T) {
	t.Parallel()
	path, args := pidFileArgs(t)
	s := driver.Start(t, args...)
	s.Ready(1)

	done, seen := make(chan struct{}), make(chan map[int]bool)
	go func() {
		pids := map[int]bool{}
		for {
			b, err := os.ReadFile(path)
			pid, numErr := strconv.Atoi(strings.TrimSuffix(string(b), "\n"))
			if err != nil || numErr != nil || !strings.HasSuffix(string(b), "\n") {
				t.Errorf("a reader of the PID file sees %q, %v", b, err)
			}
			pids[pid] = true
			select {
			case <-done:
				seen <- pids
				return
			default:
			}
		}
	}()
	const restarts = 8
	for n := range restarts {
		// As its readers do it.
		if err := syscall.Kill(pidIn(t, path), syscall.SIGUSR2); err != nil {
			t.Fatal(err)
		}
		s.Ready(n + 2)
	}
	close(done)
	if pids := <-seen; len(pids) < 2 {
		t.Errorf("%d restarts, and a reader of the PID file has seen %d processes", restarts, len(pids))
	}
	// Nothing is left beside it.
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("beside the PID file there is %v, %v", entries, err)
	}
}

func TestPIDFileAfterAFailedRestart(t *testing.T) {
	t.Parallel()
	driver.Each(t, driver.Some([]string{"exit", "kill-ready"}, 3), func(t *testing.T, fault string) {
		faults := driver.NewFaults(t)
		path, args := pidFileArgs(t, "-faults", string(faults))
		s := driver.Start(t, args...)
		p := s.Ready(1)
		h := hold(t, p.Addrs[0])
		faults.Set(t, fault)
		p.Signal(syscall.SIGUSR2)
		s.Line("restart failed")
		if fault == "kill-ready" {
			s.Line("outcome .* error=successor") // which comes last
		}
		if pid := pidIn(t, path); pid != p.Pid {
			t.Errorf("the PID file names pid %d, want pid %d, which serves", pid, p.Pid)
		}
		h.finish(p)
		p.Signal(syscall.SIGTERM)
		p.WaitExit(0)
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("the last generation has ended, and its PID file is still there (%v)", err)
		}
	})
}

func TestPIDFileOfAnotherIsNotRemoved(t *testing.T) {
	t.Parallel()
	path, args := pidFileArgs(t)
	s := driver.Start(t, args...)
	p := s.Ready(1)
	other := strconv.Itoa(os.Getpid()) + "\n"
	if err := os.WriteFile(path, []byte(other), 0o644); err != nil {
		t.Fatal(err)
	}
	p.Signal(syscall.SIGTERM)
	p.WaitExit(0)
	if b, err := os.ReadFile(path); err != nil || string(b) != other {
		t.Errorf("the PID file was overwritten by another process with %q; now it is %q, %v", other, b, err)
	}
}

func TestPIDFileOfAnotherStaysSoOverARestart(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	for _, managed := range []bool{false, true} {
		t.Run(fmt.Sprintf("managed %v", managed), func(t *testing.T) {
			t.Parallel()
			path, args := pidFileArgs(t)
			owner := driver.Start(t, args...).Ready(1)
			var s *driver.Server
			if managed {
				s = newManager(t).start(args...)
			} else {
				s = driver.Start(t, args...)
			}
			p := s.Ready(1)
			for n := 2; n <= 3; n++ {
				s.Line("writing the PID file .* serving without it")
				p.Signal(syscall.SIGUSR2)
				next := s.Ready(n)
				p.WaitExit(0)
				p = next
			}
			driver.Eventually(t, "three lines that say so", func() bool {
				return s.Count(fmt.Sprintf("it belongs to pid %d, which runs the same program; serving without it", owner.Pid)) == 3
			})
			if pid := pidIn(t, path); pid != owner.Pid {
				t.Errorf("the PID file names %d, want %d", pid, owner.Pid)
			}
			owner.Signal(syscall.SIGTERM)
			owner.WaitExit(0)
			p.Signal(syscall.SIGUSR2)
			last := s.Ready(4)
			p.WaitExit(0)
			driver.Eventually(t, "the PID file to name who serves", func() bool {
				b, _ := os.ReadFile(path)
				return string(b) == strconv.Itoa(last.Pid)+"\n"
			})
		})
	}
}

// The outcome of a restart.

func TestOnRestartLearnsTheOutcome(t *testing.T) {
	t.Parallel()
	faults := driver.NewFaults(t)
	s := driver.Start(t, httpArgs("-faults", string(faults))...)
	a := s.Ready(1)
	outcome := func(fault string) []string {
		mark := s.Mark()
		if fault != "" {
			faults.Set(t, fault)
			defer faults.Clear(t, fault)
		}
		a.Signal(syscall.SIGUSR2)
		return s.Line(`^outcome pid=(\d+) successor=(\d+) took=(\S+) error=(.*)`, mark)
	}

	if o := outcome("prestart"); o[2] != "0" || !strings.Contains(o[4], "before the start") {
		t.Errorf("the hook called the restart off, and OnRestart learns: %q", o[0])
	}
	o := outcome("exit")
	if pid, _ := strconv.Atoi(o[2]); pid <= 0 || pid == a.Pid || !strings.Contains(o[4], "exit status 2") {
		t.Errorf("the successor exited with status 2, and OnRestart learns: %q", o[0])
	}
	// It is called a second time if the successor fails later.
	h := hold(t, a.Addrs[0])
	mark := s.Mark()
	if o := outcome("kill-ready"); o[4] != "<nil>" {
		t.Errorf("the successor was ready, and OnRestart learns: %q", o[0])
	}
	if o := s.Line(`^outcome pid=(\d+) successor=(\d+) took=(\S+) error=(successor.*)`, mark); !strings.Contains(o[4], "killed") {
		t.Errorf("the successor was killed, and OnRestart learns: %q", o[0])
	}
	h.finish(a)

	o = outcome("")
	b := s.Ready(3)
	if took, err := time.ParseDuration(o[3]); o[2] != strconv.Itoa(b.Pid) || o[4] != "<nil>" || err != nil || took <= 0 {
		t.Errorf("pid %d is ready, and OnRestart learns: %q", b.Pid, o[0])
	}
}
