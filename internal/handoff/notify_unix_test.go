//go:build unix

package handoff

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/systemd"
)

// A notifySocket is where a service manager listens that the test plays.
type notifySocket struct{ *net.UnixConn }

// newManaged returns a manager that listens at the socket.
func newManaged(t *testing.T) (*Manager, notifySocket) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	g := newGeneration()
	g.SetLogger(quiet)
	g.Manager = newManager(g, &birth{env: []string{systemd.EnvSocket + "=" + path}})
	return g.Manager, notifySocket{c}
}

// next returns the next state, and its descriptors.
func (s notifySocket) next(t *testing.T) (state string, fds []int) {
	t.Helper()
	s.SetReadDeadline(time.Now().Add(patience))
	b, oob := make([]byte, 4096), make([]byte, 4096)
	n, oobn, _, _, err := s.ReadMsgUnix(b, oob)
	if err != nil {
		t.Fatal(err)
	}
	if oobn > 0 {
		if fds, err = parseRights(oob[:oobn]); err != nil {
			t.Fatal(err)
		}
	}
	return string(b[:n]), fds
}

// hold keeps the manager from sending until it is let go.
func hold(t *testing.T, m *Manager) (letGo func()) {
	t.Helper()
	held, gate := make(chan struct{}), make(chan struct{})
	m.Then(func() { close(held); <-gate })
	await(t, "the sender", held)
	return func() { close(gate) }
}

func flush(t *testing.T, m *Manager) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := m.Flush(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestLatestStatusWinsAndOrderIsKept(t *testing.T) {
	m, manager := newManaged(t)
	letGo := hold(t, m)
	called := make(chan struct{})
	for _, state := range []string{
		"STATUS=3 left", "STATUS=2 left", "STATUS=1 left",
		"READY=1\nSTATUS=Serving", "WATCHDOG=1", "WATCHDOG=1", "STATUS=a",
	} {
		m.Tell(state)
	}
	m.Then(func() { close(called) })
	m.Tell("STATUS=b") // not before what came between
	m.Tell("STATUS=c\nMAINPID=1")
	m.Tell("STATUS=d")
	letGo()
	for _, want := range []string{
		"STATUS=1 left", "READY=1\nSTATUS=Serving", "WATCHDOG=1", "STATUS=a",
		"STATUS=b", "STATUS=c\nMAINPID=1", "STATUS=d",
	} {
		if got, _ := manager.next(t); got != want {
			t.Errorf("the manager hears %q, want %q", got, want)
		}
	}
	await(t, "the call", called)
}

func TestManagerThatDoesNotReadHoldsUpNobody(t *testing.T) {
	m, manager := newManaged(t)
	letGo := hold(t, m)
	calls := make(chan int, 2)
	within(t, "telling it much", func() {
		for i := range 100 * maxNotes {
			m.Tell(fmt.Sprintf("X_N=%d", i))
		}
		m.Then(func() { calls <- 1 })
		m.Then(func() { calls <- 2 })
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		if err := m.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Flush: %v", err)
		}
	})
	m.notes.mu.Lock()
	if n := len(m.notes.waiting); n > maxNotes+3 {
		t.Errorf("%d states wait", n)
	}
	m.notes.mu.Unlock()
	letGo()
	for i := range maxNotes {
		if got, _ := manager.next(t); got != fmt.Sprintf("X_N=%d", i) {
			t.Fatalf("the manager hears %q, want number %d", got, i)
		}
	}
	if a, b := await(t, "the calls", calls), await(t, "the calls", calls); a != 1 || b != 2 {
		t.Errorf("calls %d, %d", a, b)
	}
}

func TestNobodyListensToAProcessWithoutAManager(t *testing.T) {
	g := newGeneration()
	m := newManager(g, &birth{})
	m.Tell("READY=1")
	called := false
	m.Then(func() { called = true })
	flush(t, m)
	if err := m.Barrier(context.Background()); err != nil || !called || m.Listens() || m.Supervised() || m.Watchdog != 0 {
		t.Errorf("barrier %v, called %v, %+v", err, called, m)
	}
}

func TestBarrierWaitsUntilAllIsRead(t *testing.T) {
	m, manager := newManaged(t)
	m.Tell("MAINPID=2")
	passed := make(chan error, 1)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	go func() { passed <- m.Barrier(ctx) }()
	if got, _ := manager.next(t); got != "MAINPID=2" {
		t.Fatalf("the manager hears %q", got)
	}
	state, fds := manager.next(t)
	if state != "BARRIER=1" || len(fds) != 1 {
		t.Fatalf("the manager hears %q with %d descriptors", state, len(fds))
	}
	flush(t, m)
	if len(passed) > 0 {
		t.Error("the barrier has passed before the manager was done")
	}
	closeAll(fds)
	if err := await(t, "the barrier", passed); err != nil {
		t.Error(err)
	}

	late, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := m.Barrier(late); err == nil || !strings.Contains(err.Error(), systemd.EnvSocket) {
		t.Errorf("a manager that does not answer: %v", err)
	}
}

func TestManagerThatCannotBeToldIsLoggedOnce(t *testing.T) {
	m, manager := newManaged(t)
	said := new(lines)
	m.g.SetLogger(newLog(said))
	manager.Close()
	for i := range 5 {
		m.Tell(fmt.Sprintf("X_N=%d", i))
	}
	flush(t, m)
	if s := said.String(); strings.Count(s, "\n") != 1 || !strings.Contains(s, "telling the service manager") {
		t.Errorf("logged %q, want one line", s)
	}
}

func TestListenersAreStoredByName(t *testing.T) {
	checkLeaks(t)
	m, manager := newManaged(t)
	plain, named, closed, activated := listenTCP(t), listenTCP(t), listenTCP(t), listenTCP(t)
	files, _ := newFiles(t, 1)
	for _, s := range []*Socket{
		{Kind: Listener, Open: plain},
		{Kind: Listener, Name: "web:a", Open: named},
		{Kind: Listener, Name: "closed", Open: closed},
		{Kind: Listener, Name: "systemd's", Open: activated, Activated: true},
		{Kind: File, Name: "file", Open: files[0]},
	} {
		m.g.Add(s)
	}
	said := new(lines)
	m.g.SetLogger(newLog(said))
	letGo := hold(t, m)
	m.StoreListeners()
	closed.Close() // before it is sent
	letGo()
	var got []string
	for range 2 {
		state, fds := manager.next(t)
		if len(fds) != 1 {
			t.Fatalf("%q with %d descriptors", state, len(fds))
		}
		closeAll(fds)
		got = append(got, state)
	}
	if want := []string{"FDSTORE=1\nFDNAME=grace", "FDSTORE=1\nFDNAME=web_a"}; !slices.Equal(got, want) {
		t.Errorf("stored %q, want %q", got, want)
	}
	flush(t, m)
	if s := said.String(); s != "" {
		t.Errorf("logged %q of a listener that was closed", s)
	}
}

func TestForwardedDescriptorsAreClosed(t *testing.T) {
	checkLeaks(t)
	m, manager := newManaged(t)
	files, _ := newFiles(t, 1)
	none := newManager(m.g, &birth{})
	var lent []int
	for _, to := range []*Manager{m, none} {
		var fd int
		withFDs([]syscall.Conn{files[0]}, func(fds []int) (err error) {
			fd, err = syscall.Dup(fds[0])
			return err
		})
		lent = append(lent, fd)
		to.Forward("FDSTORE=1", []int{fd})
	}
	state, fds := manager.next(t)
	sameFiles(t, fds, files)
	closeAll(fds)
	if state != "FDSTORE=1" {
		t.Errorf("the manager hears %q", state)
	}
	flush(t, m)
	for _, fd := range lent {
		var st syscall.Stat_t
		if err := syscall.Fstat(fd, &st); err != syscall.EBADF {
			t.Errorf("descriptor %d is open: %v", fd, err)
		}
	}
}

// A manager that does not read keeps no descriptors open here.
func TestDescriptorsThatAManagerDoesNotGetAreClosed(t *testing.T) {
	checkLeaks(t)
	m, manager := newManaged(t)
	letGo := hold(t, m)
	for i := range maxNotes {
		m.Tell(fmt.Sprintf("X_N=%d", i))
	}
	_, fds := newFiles(t, 1)
	fd, err := syscall.Dup(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	m.Forward("FDSTORE=1", []int{fd})
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != syscall.EBADF {
		t.Errorf("the descriptor is open: %v", err)
	}
	letGo()
	for range maxNotes {
		manager.next(t)
	}
}

func TestSupervisorHearsInsteadOfTheManager(t *testing.T) {
	m, _ := newManaged(t)
	supervisor, ours := newPair(t)
	g := newGeneration()
	g.SetLogger(quiet)
	b := &birth{env: []string{systemd.EnvSocket + "=" + m.socket}, supervisor: ours.conn}
	g.owner = make(chan *Request) // this process runs Wait: it is not sent SIGTERM below
	s := newManager(g, b)
	s.Tell("READY=1")
	buf := make([]byte, 100)
	supervisor.conn.SetReadDeadline(time.Now().Add(patience))
	if n, err := supervisor.conn.Read(buf); err != nil || string(buf[:n]) != "READY=1" {
		t.Errorf("the supervisor hears %q, %v", buf[:n], err)
	}
	if err := s.Barrier(context.Background()); err != nil || !s.Supervised() {
		t.Errorf("barrier: %v", err)
	}
	supervisor.close()
	await(t, "the supervisor's end", s.Unsupervised())
}
