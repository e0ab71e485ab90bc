//go:build unix

package handoff

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
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

	mu      sync.Mutex // guards what follows
	queue   []note     // still to be sent
	sending bool
	idle    chan struct{} // closed when all is sent; nil: nobody waits
	failed  bool          // the last one could not be sent, which was logged
}

// A note is a state that waits to be sent, or a function to be called in its place.
type note struct {
	state string
	fds   []syscall.Conn
	close bool // the descriptors when it is sent
	call  func()
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
	}
	if m.supervisor != nil {
		m.unsupervised = make(chan struct{})
		go m.watchSupervisor()
	}
	return m
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
func (m *Manager) Tell(state string) { m.enqueue(note{state: state}) }

// Then calls f when all that was told before was sent, or could not be. Without anybody
// who listens it does so at once.
func (m *Manager) Then(f func()) {
	if !m.Listens() {
		f()
		return
	}
	m.enqueue(note{call: f})
}

func (m *Manager) enqueue(n note) {
	if !m.Listens() {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if last := len(m.queue) - 1; last >= 0 && n.replaces(m.queue[last]) {
		m.queue[last] = n
	} else if len(m.queue) < maxNotes || n.call != nil {
		m.queue = append(m.queue, n)
	}
	if !m.sending {
		m.sending = true
		go m.send()
	}
}

// replaces reports whether another note, not sent yet, need not be.
func (n note) replaces(other note) bool {
	status := func(n note) bool {
		return strings.HasPrefix(n.state, "STATUS=") && !strings.Contains(n.state, "\n")
	}
	return n.call == nil && other.call == nil && n.fds == nil && other.fds == nil &&
		(n.state == other.state || status(n) && status(other))
}

// send sends what waits.
func (m *Manager) send() {
	for {
		m.mu.Lock()
		if len(m.queue) == 0 {
			m.sending = false
			if m.idle != nil {
				close(m.idle)
				m.idle = nil
			}
			m.mu.Unlock()
			return
		}
		n := m.queue[0]
		m.queue = m.queue[1:]
		m.mu.Unlock()
		if n.call != nil {
			n.call()
			continue
		}
		err := withFDs(n.fds, func(fds []int) error { return m.write(n.state, fds...) })
		if errors.Is(err, net.ErrClosed) && n.fds != nil {
			err = nil // it was closed meanwhile
		}
		if err != nil && !m.failed {
			m.g.Logf("telling the service manager: %v", err)
		}
		m.failed = err != nil
		if n.close {
			for _, f := range n.fds {
				f.(*os.File).Close()
			}
		}
	}
}

// Forward tells what a generation has told its supervisor, with descriptors that it
// closes.
func (m *Manager) Forward(state string, fds []int) {
	if !m.Listens() {
		closeAll(fds)
		return
	}
	n := note{state: state, close: true}
	for _, fd := range fds {
		n.fds = append(n.fds, os.NewFile(uintptr(fd), "descriptor for the service manager"))
	}
	m.enqueue(n)
}

// write tells the supervisor, or else the service manager.
func (m *Manager) write(state string, fds ...int) error {
	if m.supervisor == nil {
		return systemd.Notify(m.socket, state, fds...)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = syscall.UnixRights(fds...)
	}
	m.supervisor.SetWriteDeadline(time.Now().Add(sendTimeout))
	_, _, err := m.supervisor.WriteMsgUnix([]byte(state), oob, nil)
	return err
}

// Flush waits until all that was told is sent, but no longer than ctx.
func (m *Manager) Flush(ctx context.Context) error {
	m.mu.Lock()
	if !m.sending {
		m.mu.Unlock()
		return nil
	}
	if m.idle == nil {
		m.idle = make(chan struct{})
	}
	idle := m.idle
	m.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

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
	m.enqueue(note{state: "BARRIER=1", fds: []syscall.Conn{w}})
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
		m.enqueue(note{
			state: "FDSTORE=1\nFDNAME=" + strings.NewReplacer(":", "_", "\n", "_").Replace(name),
			fds:   []syscall.Conn{s.conn()},
		})
	}
}
