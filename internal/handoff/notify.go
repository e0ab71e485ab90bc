package handoff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/facebookgo/grace/internal/systemd"
)

// A Manager is who waits for this process: the service manager at NOTIFY_SOCKET, a
// supervisor, or nobody. What is told to it is sent by one goroutine, in order, so that
// one that does not read holds up nobody. All methods may be called from several
// goroutines.
type Manager struct {
	g          *Generation
	socket     string        // value of NOTIFY_SOCKET
	supervisor *net.UnixConn // nil unless Supervise started us, or who started us
	Watchdog   time.Duration // how often WATCHDOG=1 is wanted; 0: never

	unsupervised chan struct{} // closed when the supervisor has ended; nil without one

	notes  queue // what is told
	failed bool  // the last could not be sent, which was logged; for whoever sends
}

// maxNotes is how many states may wait: a manager that does not read does not get any
// more.
const maxNotes = 256

func newManager(g *Generation, b *birth) *Manager {
	m := &Manager{
		g:          g,
		socket:     b.getenv(systemd.EnvSocket),
		supervisor: b.supervisor,
		Watchdog:   systemd.Watchdog(b.getenv, os.Getpid()),
		notes:      queue{max: maxNotes},
	}
	if m.supervisor != nil {
		m.unsupervised = make(chan struct{})
		go m.watchSupervisor()
	}
	return m
}

// watchSupervisor waits for the supervisor's end: it never writes. A program with
// a signal loop of its own gets SIGTERM then.
func (m *Manager) watchSupervisor() {
	io.Copy(io.Discard, m.supervisor)
	close(m.unsupervised)
	if !m.g.Owned() {
		m.g.Logf("grace: the supervisor has ended: stopping pid %d", os.Getpid())
		kill(os.Getpid(), syscall.SIGTERM)
	}
}

// Listens reports whether somebody does.
func (m *Manager) Listens() bool { return m.supervisor != nil || m.socket != "" }

// Supervised reports whether a supervisor is the parent of the generations: to the
// service manager, that is the main process.
func (m *Manager) Supervised() bool { return m.supervisor != nil }

// Unsupervised is closed when the supervisor has ended. It is nil without one.
func (m *Manager) Unsupervised() <-chan struct{} { return m.unsupervised }

// Tell tells a state, lines of NAME=VALUE as in sd_notify(3). It does not wait. Of
// states that are nothing but a status, or the same again, only the latest is sent.
func (m *Manager) Tell(state string) {
	key := state
	if strings.HasPrefix(state, "STATUS=") && !strings.Contains(state, "\n") {
		key = "STATUS="
	}
	m.add(key, func() error { return m.write(state) })
}

// tellOf tells a state with a descriptor, unless that is closed meanwhile.
func (m *Manager) tellOf(c syscall.Conn, state string) {
	m.add("", func() error {
		err := withFDs([]syscall.Conn{c}, func(fds []int) error { return m.write(state, fds...) })
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		return err
	})
}

// Forward tells what a generation has told its supervisor, with descriptors that it
// closes.
func (m *Manager) Forward(state string, fds []int) {
	told := m.add("", func() error {
		defer closeAll(fds)
		return m.write(state, fds...)
	})
	if !told {
		closeAll(fds)
	}
}

// add lets something be told when its turn comes; see queue.add.
func (m *Manager) add(key string, tell func() error) bool {
	return m.Listens() && m.notes.add(key, func() {
		err := tell()
		if err != nil && !m.failed {
			m.g.Logf("telling the service manager: %v", err)
		}
		m.failed = err != nil
	})
}

// Then calls f when all that was told before was sent, or could not be. Without anybody
// who listens it does so at once.
func (m *Manager) Then(f func()) {
	if !m.Listens() {
		f()
		return
	}
	m.notes.then(f)
}

// write tells the supervisor, or else the service manager.
func (m *Manager) write(state string, fds ...int) error {
	if m.supervisor == nil {
		return systemd.Notify(m.socket, state, fds...)
	}
	m.supervisor.SetWriteDeadline(time.Now().Add(sendTimeout))
	_, _, err := m.supervisor.WriteMsgUnix([]byte(state), rightsOf(fds), nil)
	return err
}

// Flush waits until all that was told is sent, but no longer than ctx.
func (m *Manager) Flush(ctx context.Context) error { return m.notes.flush(ctx) }

// Barrier is Flush until the service manager has read all of it; see BARRIER=1 in
// sd_notify(3).
func (m *Manager) Barrier(ctx context.Context) error {
	if m.supervisor != nil || m.socket == "" {
		return m.Flush(ctx)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	m.tellOf(w, "BARRIER=1")
	err = m.Flush(ctx)
	w.Close()
	if err != nil {
		return err
	}
	if deadline, ok := ctx.Deadline(); ok {
		r.SetReadDeadline(deadline)
	}
	if _, err := r.Read(make([]byte, 1)); os.IsTimeout(err) {
		return fmt.Errorf("%s=%s: no answer: %w", systemd.EnvSocket, m.socket, err)
	}
	return nil
}

// StoreListeners asks the service manager to keep copies of the listening
// sockets, so that they survive a crash of this process; see FDSTORE=1 in
// sd_notify(3). It knows which ones it has already, and those that it has opened
// itself it keeps anyway.
func (m *Manager) StoreListeners() {
	for _, s := range m.g.all() {
		if s.Kind != Listener || s.Activated {
			continue
		}
		name := s.Name
		if name == "" {
			name = "grace"
		}
		s.alone.Store(false)
		m.tellOf(s.conn(), "FDSTORE=1\nFDNAME="+strings.NewReplacer(":", "_", "\n", "_").Replace(name))
	}
}
