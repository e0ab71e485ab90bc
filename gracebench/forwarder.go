package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// A forwarder balances connections, and knows nothing of what they carry, as kube-proxy does: new ones go to the
// endpoints in turn, and open ones stay where they are.
type forwarder struct {
	endpoints []string
	late      time.Duration // from an endpoint's word that it is not ready until it gets no more connections
	delay     time.Duration // of all that is sent, in each direction

	l    *net.TCPListener
	stop context.CancelFunc
	open sync.WaitGroup

	mu   sync.Mutex // guards what follows
	gone map[string]bool
	next int
}

// checkEvery is the time between two questions whether an endpoint is ready.
const checkEvery = 100 * time.Millisecond

func (f *forwarder) start(ctx context.Context) (addr string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	f.l, f.gone = l.(*net.TCPListener), make(map[string]bool)
	ctx, f.stop = context.WithCancel(ctx)
	for _, endpoint := range f.endpoints {
		f.open.Add(1)
		go func() {
			defer f.open.Done()
			f.watch(ctx, endpoint)
		}()
	}
	f.open.Add(1)
	go func() {
		defer f.open.Done()
		for {
			c, err := f.l.AcceptTCP()
			if err != nil {
				return
			}
			f.open.Add(1)
			go func() {
				defer f.open.Done()
				f.forward(ctx, c)
			}()
		}
	}()
	return l.Addr().String(), nil
}

// close ends all connections.
func (f *forwarder) close() {
	f.stop()
	f.l.Close()
	f.open.Wait()
}

// watch asks the endpoint whether it is ready. That it is counts at once, that it is not only later.
func (f *forwarder) watch(ctx context.Context, endpoint string) {
	ask := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: startTimeout}
	var since time.Time // when it said first that it is not ready
	for sleep(ctx, checkEvery) {
		resp, err := ask.Get("http://" + endpoint + readyPath)
		ready := err == nil && resp.StatusCode == http.StatusOK
		if err == nil {
			resp.Body.Close()
		}
		switch {
		case ready:
			since = time.Time{}
		case since.IsZero():
			since = time.Now()
		}
		f.mu.Lock()
		f.gone[endpoint] = !ready && time.Since(since) >= f.late
		f.mu.Unlock()
	}
}

// pick returns the endpoint whose turn it is.
func (f *forwarder) pick() (endpoint string, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for range f.endpoints {
		endpoint = f.endpoints[f.next%len(f.endpoints)]
		f.next++
		if !f.gone[endpoint] {
			return endpoint, true
		}
	}
	return "", false
}

func (f *forwarder) forward(ctx context.Context, client *net.TCPConn) {
	defer client.Close()
	endpoint, ok := f.pick()
	if !ok {
		return
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", endpoint)
	if err != nil {
		client.SetLinger(0) // refused: the client sees a reset
		return
	}
	server := conn.(*net.TCPConn)
	defer server.Close()
	defer context.AfterFunc(ctx, func() { client.Close(); server.Close() })()
	var both sync.WaitGroup
	both.Add(2)
	go func() { defer both.Done(); relay(server, client, f.delay) }()
	go func() { defer both.Done(); relay(client, server, f.delay) }()
	both.Wait()
}

// relay sends to one what the other sends, and the end of it, after the delay. What one does not take is forgotten: that
// it has ended comes with the other direction, after all that it has sent.
func relay(to, from *net.TCPConn, delay time.Duration) {
	type piece struct {
		bytes []byte
		err   error // after the bytes
		due   time.Time
	}
	pieces := make(chan piece, 1024)
	go func() {
		defer close(pieces)
		for {
			b := make([]byte, 8<<10)
			n, err := from.Read(b)
			pieces <- piece{b[:n], err, time.Now().Add(delay)}
			if err != nil {
				return
			}
		}
	}()
	for p := range pieces {
		time.Sleep(time.Until(p.due))
		to.Write(p.bytes)
		switch {
		case p.err == nil:
		case errors.Is(p.err, io.EOF):
			to.CloseWrite()
		default:
			to.SetLinger(0)
			to.Close()
		}
	}
}
