//go:build unix

package driver

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A Load is HTTP clients that send requests all the time, and none of them
// twice: a request without its answer is lost.
type Load struct {
	tb       testing.TB
	stop     chan struct{}
	clients  sync.WaitGroup
	pause    time.Duration
	requests Counter
	dials    atomic.Int64 // of the clients that keep their connection
	ending   atomic.Bool  // see Ending

	mu   sync.Mutex // guards what follows
	lost []error
	by   [loadClients]int // how many of them each client has lost
	pids map[string]int   // how many answers each process has given
}

// loadClients is how many clients a Load has: two that keep their connection
// busy, four that leave it idle in between, two that open one for each request.
const loadClients = 8

// StartLoad starts the clients. The answer to a GET of path must be 200 OK, and
// the last number in it the process that gives it.
func StartLoad(tb testing.TB, addr, path string) *Load {
	tb.Helper()
	return StartPacedLoad(tb, addr, path, 5*time.Millisecond)
}

// StartPacedLoad is StartLoad with a pause between two requests of a busy client.
func StartPacedLoad(tb testing.TB, addr, path string, pause time.Duration) *Load {
	tb.Helper()
	l := &Load{tb: tb, pause: pause, stop: make(chan struct{}), pids: map[string]int{}}
	request := "GET " + path + " HTTP/1.1\r\nHost: load\r\n"
	for i := range loadClients {
		l.clients.Add(1)
		go l.run(i, addr, request)
	}
	tb.Cleanup(func() { l.end() })
	l.More(5 * loadClients)
	return l
}

func (l *Load) run(i int, addr, request string) {
	defer l.clients.Done()
	pause := l.pause
	if i%4 > 1 {
		pause = 23 * time.Millisecond
	}
	keep := i%4 > 0
	if !keep {
		request += "Connection: close\r\n"
	}
	var c net.Conn
	var in *bufio.Reader
	for {
		var err error
		fresh := c == nil
		if fresh {
			if keep {
				l.dials.Add(1)
			}
			if c, err = net.DialTimeout(network(addr), addr, Patience); err == nil {
				in = bufio.NewReader(c)
			}
		}
		if l.ending.Load() && (errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist)) {
			return
		}
		var pid string
		var last bool
		if err == nil {
			pid, last, err = exchange(c, in, request+"\r\n")
		}
		if fresh && l.ending.Load() && errors.Is(err, syscall.ECONNRESET) {
			c.Close()
			return
		}
		l.mu.Lock()
		if err != nil {
			l.lost = append(l.lost, fmt.Errorf("client %d: %w", i, err))
			l.by[i]++
		} else {
			l.pids[pid]++
		}
		l.mu.Unlock()
		l.requests.Add()
		if c != nil && (err != nil || last) {
			c.Close()
			c = nil
		}
		select {
		case <-time.After(pause):
		case <-l.stop:
			if c != nil {
				c.Close()
			}
			return
		}
	}
}

// lastNumber is where an answer names its process.
var lastNumber = regexp.MustCompile(`(\d+)\D*$`)

func exchange(c net.Conn, in *bufio.Reader, request string) (pid string, last bool, err error) {
	c.SetDeadline(time.Now().Add(Patience))
	if _, err := io.WriteString(c, request); err != nil {
		return "", false, err
	}
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		return "", false, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", false, err
	}
	m := lastNumber.FindSubmatch(body)
	if resp.StatusCode != http.StatusOK || m == nil {
		return "", false, fmt.Errorf("%s: %q", resp.Status, body)
	}
	return string(m[1]), resp.Close, nil
}

// network returns which network an address belongs to.
func network(addr string) string {
	if strings.HasPrefix(addr, "/") {
		return "unix"
	}
	return "tcp"
}

// Ending says that the server is about to stop: a client that is refused from now on, or
// whose new connection still waited to be accepted when the socket was closed, has lost
// nothing, and ends.
func (l *Load) Ending() { l.ending.Store(true) }

// More waits until the clients have sent n more requests.
func (l *Load) More(n int) {
	l.tb.Helper()
	l.requests.More(l.tb, int64(n))
}

// Await waits until so many processes have answered.
func (l *Load) Await(processes int) {
	l.tb.Helper()
	l.requests.Until(l.tb, fmt.Sprintf("%d processes to have answered", processes), func() bool { return l.Processes() >= processes })
}

// Processes returns how many processes have answered.
func (l *Load) Processes() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.pids)
}

func (l *Load) end() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.clients.Wait()
}

// NothingLost ends the load. It fails the test if a request was lost, or a
// client that keeps its connection had to open another one. It returns how many
// requests there were.
func (l *Load) NothingLost() int {
	l.tb.Helper()
	l.LostAtMost(0)
	requests := int(l.requests.Load())
	if dials, keep := int(l.dials.Load()), loadClients*3/4; dials != keep && len(l.lost) == 0 {
		l.tb.Errorf("%d clients that keep their connection have opened %d", keep, dials)
	}
	return requests
}

// Lost returns how many requests were lost so far.
func (l *Load) Lost() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.lost)
}

// LostAtMost ends the load. It fails the test if a client has lost more than n requests:
// one that so many processes held when they were killed.
func (l *Load) LostAtMost(n int) {
	l.tb.Helper()
	l.end()
	if slices.Max(l.by[:]) <= n {
		return
	}
	for i, err := range l.lost {
		if i == 5 {
			l.tb.Errorf("… and %d more", len(l.lost)-i)
			break
		}
		l.tb.Errorf("lost: %v", err)
	}
}
