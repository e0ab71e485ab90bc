package handoff

import (
	"cmp"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
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
	alone atomic.Bool // it is known that none but generations of this program have it: no service manager does
	index int         // its place in the LISTEN_FDS that we inherited, or -1
	used  bool        // somebody has asked for it; the pool's
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

// describe notes what a predecessor says of a socket.
func (s *Socket) describe(b socketBody) {
	s.Network, s.Address, s.Name, s.Activated = b.Network, b.Address, b.Name, b.Activated
	s.alone.Store(b.Alone)
}

// open takes a descriptor over and makes of it what it is.
func (s *Socket) open(fd int) {
	s.leave.Store(true) // the predecessor's, until we are ready
	s.Kind = kindOf(fd)
	f := os.NewFile(uintptr(fd), cmp.Or(s.Name, "descriptor "+strconv.Itoa(fd)))
	var err error
	switch s.Kind {
	case Listener:
		s.Open, err = net.FileListener(f)
	case Packet:
		s.Open, err = net.FilePacketConn(f)
	}
	if s.Kind == File || err != nil {
		s.Kind, s.Open = File, f
		return
	}
	f.Close()
}

// LeavesPath reports whether closing the socket shall leave its path: another
// process has it.
func (s *Socket) LeavesPath() bool { return s.leave.Load() }

// Describe says in words what a socket is, for an error.
func (s *Socket) Describe() string {
	switch s.Kind {
	case Listener:
		return "a listening socket"
	case Packet:
		return "a datagram socket"
	}
	info, err := s.File().Stat()
	if err != nil {
		return err.Error()
	}
	switch mode := info.Mode(); {
	case mode&os.ModeSocket != 0:
		return "a socket that does not listen"
	case mode&os.ModeNamedPipe != 0:
		return "a pipe"
	case mode&os.ModeDevice != 0:
		return "a device"
	case mode.IsDir():
		return "a directory"
	}
	return "a file"
}

// Descriptor returns the number under which the socket was inherited, or -1.
func (s *Socket) Descriptor() int {
	if s.index < 0 {
		return -1
	}
	return firstFD + s.index
}

func (s *Socket) conn() syscall.Conn {
	c, _ := s.Open.(syscall.Conn)
	return c
}

// keepPath says whether closing the socket shall leave a unix socket's path.
func (s *Socket) keepPath(keep bool) {
	keep = keep || s.Activated
	s.leave.Store(keep)
	accept.SetUnlinkOnClose(s.Open, !keep)
}

// A socketID is the same for all descriptors of one socket.
type socketID struct {
	dev, ino uint64
	bound    string // where sockets have no inode number, on macOS and the BSDs: descriptor and address
}

// A pool holds the sockets of a generation: those that it has inherited, in their order,
// until somebody asks for them; then all that are in use.
type pool struct {
	mu      sync.Mutex
	sockets []*Socket
}

// Take gives out the first inherited socket that match accepts and nobody has
// asked for yet, or nil. It goes on travelling until it is closed.
func (p *pool) Take(match func(*Socket) bool) *Socket {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, s := range p.sockets {
		if !s.used && match(s) {
			s.used = true
			p.sockets = append(slices.Delete(p.sockets, i, i+1), s)
			return s
		}
	}
	return nil
}

// Add lets a socket that was opened here travel to successors until it is
// closed.
func (p *pool) Add(s *Socket) {
	s.index, s.used = -1, true
	s.alone.Store(!s.Activated)
	p.mu.Lock()
	p.prune()
	p.sockets = append(p.sockets, s)
	p.mu.Unlock()
}

// prune forgets those that were closed. The caller holds p.mu.
func (p *pool) prune() {
	p.sockets = slices.DeleteFunc(p.sockets, func(s *Socket) bool { return !s.isOpen() })
}

// Find returns the first socket in use that match accepts, or nil.
func (p *pool) Find(match func(*Socket) bool) *Socket {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.sockets {
		if s.used && match(s) {
			return s
		}
	}
	return nil
}

// Remove lets the sockets in use that match accepts stay here, and returns them.
func (p *pool) Remove(match func(*Socket) bool) []*Socket {
	return p.remove(func(s *Socket) bool { return s.used && match(s) })
}

// Discard closes all inherited sockets that nobody has asked for, and returns them.
func (p *pool) Discard() []*Socket {
	unused := p.remove(func(s *Socket) bool { return !s.used })
	for _, s := range unused {
		s.Open.Close()
	}
	return unused
}

func (p *pool) remove(match func(*Socket) bool) (removed []*Socket) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sockets = slices.DeleteFunc(p.sockets, func(s *Socket) bool {
		if match(s) {
			removed = append(removed, s)
			return true
		}
		return false
	})
	return removed
}

// all returns what a successor shall inherit, without what was closed.
func (p *pool) all() []*Socket {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.prune()
	return slices.Clone(p.sockets)
}

// inUse returns those that were asked for, without what was closed.
func (p *pool) inUse() []*Socket {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.prune()
	return slices.DeleteFunc(slices.Clone(p.sockets), func(s *Socket) bool { return !s.used })
}

// keepPaths says of every socket in use whether closing it leaves its path.
func (p *pool) keepPaths(keep bool) {
	for _, s := range p.inUse() {
		s.keepPath(keep)
	}
}

func (s *Socket) isOpen() bool {
	c := s.conn()
	return c != nil && withFDs([]syscall.Conn{c}, func([]int) error { return nil }) == nil
}
