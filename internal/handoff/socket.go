package handoff

import (
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/facebookgo/grace/internal/accept"
)

// A Kind tells what travels.
type Kind string

const (
	Listener Kind = "listener" // a listening stream socket
	Packet   Kind = "packet"   // a datagram socket
	File     Kind = "file"     // any other descriptor, by name
)

// A Socket is an open socket, or file, that travels from generation to
// generation. Its fields do not change.
type Socket struct {
	Kind      Kind
	Network   string // as asked for; empty if that is not known
	Address   string // as asked for: this is what lets port 0 keep its port
	Name      string // by which a File, or a socket from systemd, is known
	Activated bool   // systemd keeps it too: its path is not ours to remove

	// Open is what it is: a net.Listener, net.PacketConn or *os.File, by Kind.
	Open io.Closer

	leave atomic.Bool // closing it leaves its path
	index int         // its place in the LISTEN_FDS that we inherited, or -1
}

// Listener returns the listener, or nil if it is none.
func (s *Socket) Listener() net.Listener {
	l, _ := s.Open.(net.Listener)
	return l
}

// PacketConn returns the packet connection, or nil if it is none.
func (s *Socket) PacketConn() net.PacketConn {
	c, _ := s.Open.(net.PacketConn)
	return c
}

// File returns the file, or nil if it is none. It stays the pool's.
func (s *Socket) File() *os.File {
	f, _ := s.Open.(*os.File)
	return f
}

// Addr returns what a socket is bound to, nil for a file.
func (s *Socket) Addr() net.Addr {
	switch open := s.Open.(type) {
	case net.Listener:
		return open.Addr()
	case net.PacketConn:
		return open.LocalAddr()
	}
	return nil
}

// LeavesPath reports whether closing the socket shall leave its path: another
// process has it.
func (s *Socket) LeavesPath() bool { return s.leave.Load() }

func (s *Socket) conn() syscall.Conn {
	c, _ := s.Open.(syscall.Conn)
	return c
}

// keepPath says whether closing the socket shall leave a unix socket's path.
func (s *Socket) keepPath(keep bool) {
	s.leave.Store(keep || s.Activated)
	keepPath(s.Open, keep || s.Activated)
}

// keepPath says whether closing a listener shall leave a unix socket's path.
func keepPath(l any, keep bool) { accept.SetUnlinkOnClose(l, !keep) }

// A pool holds the sockets of a generation: inherited ones until somebody asks
// for them, and all that are in use, for the successor.
type pool struct {
	mu     sync.Mutex
	unused []*Socket // inherited, in their order
	used   []*Socket
}

// Take gives out the first inherited socket that match accepts and nobody has
// asked for yet, or nil. It goes on travelling until it is closed.
func (p *pool) Take(match func(*Socket) bool) *Socket {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, s := range p.unused {
		if match(s) {
			p.unused = append(p.unused[:i:i], p.unused[i+1:]...)
			p.used = append(p.used, s)
			return s
		}
	}
	return nil
}

// Add lets a socket that was opened here travel to successors until it is
// closed.
func (p *pool) Add(s *Socket) {
	s.index = -1
	p.mu.Lock()
	p.used = append(open(p.used), s)
	p.mu.Unlock()
}

// Find returns the first socket in use that match accepts, or nil.
func (p *pool) Find(match func(*Socket) bool) *Socket {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.used {
		if match(s) {
			return s
		}
	}
	return nil
}

// Remove lets the sockets that match accepts stay here, and returns them.
func (p *pool) Remove(match func(*Socket) bool) (removed []*Socket) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var kept []*Socket
	for _, s := range p.used {
		if match(s) {
			removed = append(removed, s)
		} else {
			kept = append(kept, s)
		}
	}
	p.used = kept
	return removed
}

// all returns what a successor shall inherit, without what was closed.
func (p *pool) all() []*Socket {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used = open(p.used)
	return append(open(p.unused), p.used...)
}

// inUse returns those that were asked for, without what was closed.
func (p *pool) inUse() []*Socket {
	p.mu.Lock()
	defer p.mu.Unlock()
	return open(p.used)
}

// closeUnused closes what nobody has asked for.
func (p *pool) closeUnused() []*Socket {
	p.mu.Lock()
	unused := p.unused
	p.unused = nil
	p.mu.Unlock()
	for _, s := range unused {
		s.Open.Close()
	}
	return unused
}

// keepPaths says of every socket whether closing it leaves its path.
func (p *pool) keepPaths(keep bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.used {
		s.keepPath(keep)
	}
}

// open returns those sockets that have not been closed.
func open(sockets []*Socket) []*Socket {
	var alive []*Socket
	for _, s := range sockets {
		if c := s.conn(); c != nil {
			if raw, err := c.SyscallConn(); err == nil && raw.Control(func(uintptr) {}) == nil {
				alive = append(alive, s)
			}
		}
	}
	return alive
}
