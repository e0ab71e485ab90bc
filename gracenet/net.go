// Package gracenet provides the net.Listen family for a process that restarts:
// each function returns the socket that the predecessor, or systemd, has handed
// over for that address, or else opens it.
//
// What it returns is inherited by every successor of the process until it is
// closed. Package gracehttp stands on it. A server of another protocol lets package grace
// count its connections, and wait for signals:
//
//	var n gracenet.Net
//	l, err := n.Listen("tcp", ":7000")
//	counted := grace.NewListener(l.(grace.Listener))
//	go serve(counted)
//	err = grace.CloseParent() // we serve: the predecessor may end
//	err = grace.Wait([]grace.Listener{counted})
package gracenet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/facebookgo/grace/internal/handoff"
)

// files guards looking for a named file and replacing it.
var files sync.Mutex

// A Net listens. The zero value is ready to use, and all methods may be called
// from several goroutines. All Nets of a process share what was inherited.
//
// An inherited socket is found by the network and address that it was asked for
// in the predecessor, so that port 0 keeps its port; or else by what it is bound
// to, where all forms of the unspecified address (":80", "0.0.0.0:80",
// "[::]:80") are the same one. Networks tcp4 and tcp6 get sockets of their
// family only. Each inherited socket is given out once. Those that nobody has
// asked for are closed when the process says that it is ready.
//
// A program that goes over from all addresses of a port to one of them ("127.0.0.1:80")
// gets the inherited socket, which still accepts on all, as its Addr says, and a line
// in the log; only a stop makes it less. The other way round the inherited
// socket is too little, and an error that is syscall.EADDRINUSE says that this change
// needs a stop.
type Net struct {
	// ListenConfig is used for sockets that are opened here. Inherited ones are
	// as the predecessor has opened them, but for KeepAlive and KeepAliveConfig: package net
	// keeps these beside the socket, and what an inherited one accepts has its defaults.
	ListenConfig net.ListenConfig
}

// Listen is net.Listen for stream sockets: network must be "tcp", "tcp4",
// "tcp6", "unix" or "unixpacket". An address "systemd:NAME" is the first socket
// from systemd with this FileDescriptorName=, whatever network it is of.
//
// A unix socket's file stays over restarts and is removed by the last process.
// One that a killed process has left behind is replaced, and so is an inherited
// socket, by a new one, if its path no longer leads to it: the file was removed, or
// replaced by another's.
func (n *Net) Listen(network, address string) (net.Listener, error) {
	s, err := n.socket(handoff.Listener, network, address)
	if err != nil {
		return nil, err
	}
	return s.Listener(), nil
}

// ListenTCP is net.ListenTCP: network must be "tcp", "tcp4" or "tcp6", and a nil
// address is ":0".
func (n *Net) ListenTCP(network string, laddr *net.TCPAddr) (*net.TCPListener, error) {
	if !strings.HasPrefix(network, "tcp") {
		return nil, listenError(network, laddr.String(), net.UnknownNetworkError(network))
	}
	if laddr == nil {
		laddr = &net.TCPAddr{}
	}
	return listenAs[*net.TCPListener](n, network, laddr.String())
}

// ListenUnix is net.ListenUnix: network must be "unix" or "unixpacket".
func (n *Net) ListenUnix(network string, laddr *net.UnixAddr) (*net.UnixListener, error) {
	switch {
	case !strings.HasPrefix(network, "unix"):
		return nil, listenError(network, laddr.String(), net.UnknownNetworkError(network))
	case laddr == nil:
		return nil, listenError(network, "", &net.AddrError{Err: "missing address"})
	}
	return listenAs[*net.UnixListener](n, network, laddr.Name)
}

// listenAs is Listen for a listener of one type.
func listenAs[L net.Listener](n *Net, network, address string) (as L, err error) {
	l, err := n.Listen(network, address)
	if err != nil {
		return as, err
	}
	as, ok := l.(L)
	if !ok {
		l.Close()
		return as, listenError(network, address, fmt.Errorf("the inherited socket is a %T", l))
	}
	return as, nil
}

// ListenPacket is net.ListenPacket for "udp", "udp4", "udp6" and "unixgram".
// A unixgram connection embeds *net.UnixConn, and is not one itself: closing it
// removes its path.
//
// The generations share the socket: from the successor's first ReadFrom until this
// process's last one, each datagram reaches one of them, which need not be the one
// that has answered the client before. To lose none, end in this order, once
// grace.Wait has returned: SetReadDeadline(time.Now()) ends reading, and what has not
// been read is the successor's; wait for the handlers, which may still write; then
// Close. The example does so.
//
// That is enough where each datagram can be answered by itself, as with DNS. QUIC and
// DTLS have connections whose keys are in one process: the other drops their datagrams,
// and a QUIC server may answer them with a stateless reset. Such a server has to pass
// them on by connection ID to the process that has the connection, or let each
// generation listen on a socket of its own.
func (n *Net) ListenPacket(network, address string) (net.PacketConn, error) {
	s, err := n.socket(handoff.Packet, network, address)
	if err != nil {
		return nil, err
	}
	if c, ok := s.PacketConn().(*net.UnixConn); ok {
		return &unixgramConn{UnixConn: c, socket: s}, nil
	}
	return s.PacketConn(), nil
}

// AddFile lets a copy of f travel to all successors under this name; they find
// it with File. It replaces another of that name. f stays the caller's.
func (n *Net) AddFile(name string, f *os.File) error {
	files.Lock()
	defer files.Unlock()
	dup, err := dupFile(f)
	if err != nil {
		return fmt.Errorf("gracenet: adding file %q: %w", name, err)
	}
	g := handoff.Self()
	same := func(s *handoff.Socket) bool { return s.Kind == handoff.File && s.Name == name }
	g.Take(same)
	for _, s := range g.Remove(same) {
		s.File().Close()
	}
	g.Add(&handoff.Socket{Kind: handoff.File, Name: name, Open: dup})
	return nil
}

// File returns a copy of the file that was added under this name, here or by a
// predecessor. The copy is the caller's. The error is fs.ErrNotExist if there is
// none.
func (n *Net) File(name string) (*os.File, error) {
	files.Lock()
	defer files.Unlock()
	g := handoff.Self()
	same := func(s *handoff.Socket) bool { return s.Kind == handoff.File && s.Name == name }
	s := g.Find(same)
	if s == nil {
		s = g.Take(same)
	}
	if s == nil {
		return nil, fmt.Errorf("gracenet: file %q: %w", name, fs.ErrNotExist)
	}
	f, err := dupFile(s.File())
	if err != nil {
		return nil, fmt.Errorf("gracenet: file %q: %w", name, err)
	}
	return f, nil
}

// StartProcess starts a successor with all sockets and files of this process,
// and returns its process id at once. Where grace.Wait or gracehttp.Serve runs, that owns
// the restart: it is one like any other, and a failure is logged there.
//
// A program that runs neither decides by itself what becomes of its sockets, and when it
// ends. It gets SIGTERM when the successor is ready: from the successor itself if that
// tells its parent, as programs do that were written for facebookgo/grace, or from here if
// it calls grace.CloseParent or serves with Wait or Serve. If the successor ends before
// that, the standard logger gets a line.
func (n *Net) StartProcess() (int, error) {
	g := handoff.Self()
	request := &handoff.Request{Started: make(chan int, 1), Outcome: make(chan handoff.Outcome, 1)}
	if g.Ask(request) {
		select {
		case pid := <-request.Started:
			return pid, nil
		case outcome := <-request.Outcome:
			return outcome.Pid, outcome.Err
		}
	}
	pid, err := g.StartAlone()
	if err != nil {
		return 0, fmt.Errorf("gracenet: %w", err)
	}
	return pid, nil
}

// networks are those of each kind of socket.
var networks = map[handoff.Kind][]string{
	handoff.Listener: {"tcp", "tcp4", "tcp6", "unix", "unixpacket"},
	handoff.Packet:   {"udp", "udp4", "udp6", "unixgram"},
}

// socket returns an inherited socket, or opens one.
func (n *Net) socket(kind handoff.Kind, network, address string) (*handoff.Socket, error) {
	if !slices.Contains(networks[kind], network) {
		return nil, listenError(network, address, net.UnknownNetworkError(network))
	}
	g := handoff.Self()
	if g.Err != nil {
		return nil, listenError(network, address, fmt.Errorf("inheriting sockets: %w", g.Err))
	}
	take := func(match func(*handoff.Socket) bool) *handoff.Socket {
		return g.Take(func(s *handoff.Socket) bool { return s.Kind == kind && match(s) })
	}

	// By name.
	if name, ok := strings.CutPrefix(address, "systemd:"); ok {
		s := take(func(s *handoff.Socket) bool { return s.Name == name })
		if s == nil {
			return nil, listenError(network, address, fmt.Errorf("no %s of this name was handed over: %w", kind, fs.ErrNotExist))
		}
		return s, nil
	}
	// By what was asked for.
	s := take(func(s *handoff.Socket) bool {
		return s.Network == network && s.Address == address && reachable(s)
	})
	if s != nil {
		return s, nil
	}
	// By what it is bound to.
	e, err := resolve(network, address)
	if err != nil {
		return nil, listenError(network, address, err)
	}
	s = take(func(s *handoff.Socket) bool { return e.is(s.Addr()) && reachable(s) })
	if s != nil {
		return s, nil
	}

	// A new one: for port 0 on another port than one that may have been inherited for it.
	if g.Undescribed != nil && e.path == "" && e.at.Port() == 0 {
		inherited := false
		take(func(*handoff.Socket) bool { inherited = true; return false })
		if inherited {
			return nil, listenError(network, address, fmt.Errorf("which of the inherited sockets this is, the predecessor has not said: %w", g.Undescribed))
		}
	}
	s = &handoff.Socket{Kind: kind, Network: network, Address: address}
	err = n.open(s)
	if err == nil {
		g.Add(s)
		return s, nil
	}
	if !errors.Is(err, syscall.EADDRINUSE) {
		return nil, err
	}
	// One that has more than was asked for: as long as it is open, here or in the
	// predecessor, the system lets nobody have less.
	s = take(func(s *handoff.Socket) bool { return e.isPartOf(s.Addr()) && !(e.ip().Is4() && onlyIPv6(s)) })
	if s != nil {
		g.Logf("listening on all of %v, as inherited, instead of %s: to have less of it needs a stop", s.Addr(), address)
		return s, nil
	}
	var other net.Addr
	take(func(s *handoff.Socket) bool {
		if e.samePort(s.Addr()) {
			other = s.Addr()
		}
		return false
	})
	if other != nil {
		err = listenError(network, address, fmt.Errorf("%w by the inherited socket on %v, which does not serve for that: "+
			"this change needs a stop", syscall.EADDRINUSE, other))
	}
	return nil, err
}

// open opens the socket, in place of a unix socket that nobody has any more if
// need be.
func (n *Net) open(s *handoff.Socket) error {
	if !strings.HasPrefix(s.Network, "unix") {
		return n.listen(s)
	}
	paths.mu.Lock()
	defer paths.mu.Unlock()
	err := n.listen(s)
	if errors.Is(err, syscall.EADDRINUSE) && removeStale(s.Address) {
		err = n.listen(s)
	}
	if err == nil {
		remember(s.Address)
	}
	return err
}

func (n *Net) listen(s *handoff.Socket) (err error) {
	if s.Kind == handoff.Packet {
		s.Open, err = n.ListenConfig.ListenPacket(context.Background(), s.Network, s.Address)
	} else {
		s.Open, err = n.ListenConfig.Listen(context.Background(), s.Network, s.Address)
	}
	return err
}

func listenError(network, address string, err error) error {
	return &net.OpError{Op: "listen", Net: network, Err: fmt.Errorf("%s: %w", address, err)}
}
