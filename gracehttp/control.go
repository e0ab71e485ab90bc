package gracehttp

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/facebookgo/grace"
	"github.com/facebookgo/grace/gracenet"
	"github.com/facebookgo/grace/internal/accept"
	"github.com/facebookgo/grace/internal/handoff"
)

// Status is what GET /status of ControlHandler answers. Its JSON is stable: members may be
// added, none is renamed or changes its meaning, and one that is left out is zero.
type Status struct {
	Pid        int    `json:"pid"`
	Generation int    `json:"generation"` // 1 for the process that was started first, 2 for its successor, …
	State      string `json:"state"`      // "starting", "serving", "restarting" (serving, while a successor starts), "lame duck", "draining", "standby" or "stopping"
	Ready      bool   `json:"ready"`      // as Ready says

	// Since is when this process became ready.
	Since time.Time `json:"since,omitzero"`

	// Addresses are those that Serve listens on: "127.0.0.1:8080", or "unix:/path".
	Addresses []string `json:"addresses"`

	// Connections are those that this process has open, on all its servers.
	Connections Connections `json:"connections"`

	// Predecessor is the process that has handed over to this one, while it is there.
	Predecessor *Predecessor `json:"predecessor,omitempty"`

	// LastRestart is the last one that this process was asked for, or else the one that
	// has started it.
	LastRestart *Restarted `json:"last_restart,omitempty"`

	Build Build `json:"build"`
}

// Connections are counts of open connections.
type Connections struct {
	Open     int `json:"open"`     // all of them
	HTTP1    int `json:"http1"`    // of these, those that speak HTTP/1, or nothing yet
	HTTP2    int `json:"http2"`    // those that speak HTTP/2
	Hijacked int `json:"hijacked"` // those that a handler has taken over, such as WebSockets

	// Oldest is since when the oldest of them is open, here or in a predecessor.
	Oldest time.Time `json:"oldest,omitzero"`
}

// A Predecessor is a process that has handed over, and has not ended.
type Predecessor struct {
	Pid   int    `json:"pid"`
	State string `json:"state"` // "draining"; "standby" when that is over

	// Holds says in words, for people, what it had open when it last said so, which it
	// does once a second.
	Holds string `json:"holds,omitempty"`
}

// A Restarted is the outcome of a restart: also what POST /restart answers.
type Restarted struct {
	Pid     int       `json:"pid,omitempty"`   // the successor's; left out if none was started
	At      time.Time `json:"at"`              // when it began
	Seconds float64   `json:"seconds"`         // until the outcome was known
	Error   string    `json:"error,omitempty"` // why it failed; left out if the successor serves
}

// A Build is what runs, as far as the program file says it; see debug.ReadBuildInfo.
type Build struct {
	Path     string    `json:"path,omitempty"`     // of the main package
	Version  string    `json:"version,omitempty"`  // of the main module
	Revision string    `json:"revision,omitempty"` // of version control
	Time     time.Time `json:"time,omitzero"`      // of that revision
	Modified bool      `json:"modified,omitempty"` // the files were not as in that revision
	Go       string    `json:"go"`                 // the release of Go
}

// UnixMode is the mode of the unix sockets that Serve opens, such as 0o600 for its user
// alone: whoever may write to the file can connect. By default the umask decides. The
// files have it from their first moment on, and inherited ones when this process becomes
// ready; those from systemd are left alone. An abstract socket has no mode: Serve returns
// an error then, and where files of sockets have none (errors.ErrUnsupported).
func UnixMode(mode fs.FileMode) Option {
	return func(a *app) {
		mode = mode.Perm()
		a.unixMode = &mode
	}
}

// ControlHandler restarts for whoever may send it requests, and says how things are. It
// is for a server of its own that only the service's user, or its administrators, reach,
// and that survives restarts as the others do:
//
//	&http.Server{Addr: "unix:/run/app/control", Handler: gracehttp.ControlHandler()}
//
// with the option UnixMode(0o600). A handler that is mounted elsewhere needs
// http.StripPrefix, and a check of who asks.
//
// POST /restart restarts, as Restart does, and answers when the outcome is known, with a
// Restarted in JSON: 200 with the process id of the successor, which serves; 409 if a
// restart is under way, or the process is stopping or not serving; 500 with the reason why
// it failed, and this process serves on. The WriteTimeout of the server does not cut the
// wait short, and a client that goes away changes nothing. A page of another site cannot
// ask for it: the answer is 403.
//
// GET /status answers 200 with a Status in JSON, of the process that answers: the one
// that serves, but on a connection that could not move.
func ControlHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /restart", serveRestart)
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusOK, status())
	})
	return mux
}

func serveRestart(w http.ResponseWriter, r *http.Request) {
	outcome := Restarted{At: time.Now()}
	if isOfAnotherSite(r) {
		outcome.Error = "asked for by a page of another site"
		writeJSON(w, http.StatusForbidden, outcome)
		return
	}
	http.NewResponseController(w).SetWriteDeadline(time.Time{}) // where that fails, there is none of net/http's
	var err error
	outcome.Pid, err = Restart()
	outcome.Seconds = time.Since(outcome.At).Seconds()
	code := http.StatusOK
	switch {
	case err == nil:
	case errors.Is(err, grace.ErrUnderWay), errors.Is(err, grace.ErrStopping), errors.Is(err, ErrNotServing):
		code = http.StatusConflict
	default:
		code = http.StatusInternalServerError
	}
	if err != nil {
		outcome.Error = err.Error()
	}
	writeJSON(w, code, outcome)
}

// isOfAnotherSite reports whether a browser sends this for a page that is not ours. Older
// ones, and those that came without TLS, say only the page's Origin.
func isOfAnotherSite(r *http.Request) bool {
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" {
		return site != "same-origin" && site != "none"
	}
	origin := r.Header.Get("Origin")
	if origin == "" {
		return false
	}
	u, err := url.Parse(origin)
	return err != nil || u.Host != r.Host
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	body, err := json.MarshalIndent(v, "", "\t")
	if err != nil { // a clock that shows a year beyond 9999
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	w.Write(append(body, '\n'))
}

// status returns how things are.
func status() Status {
	g := handoff.Self()
	phase := g.Phase()
	s := Status{
		Pid:         os.Getpid(),
		Generation:  g.Number,
		State:       phase.String(),
		Ready:       Ready(),
		Addresses:   []string{},
		LastRestart: lastRestart(g.LastRestart()),
		Build:       build(),
	}
	if p := g.Predecessor; !isOver(p.Gone()) {
		s.Predecessor = &Predecessor{Pid: p.Pid, State: handoff.Draining.String(), Holds: p.Holds()}
		if isOver(p.Drained()) {
			s.Predecessor.State = handoff.Standby.String()
			s.Predecessor.Holds = ""
		}
	}
	a := current.Load()
	if a == nil {
		return s
	}
	var count accept.Count
	for _, srv := range a.servers {
		addr := srv.Addr()
		name := addr.String()
		if strings.HasPrefix(addr.Network(), "unix") {
			name = "unix:" + name
		}
		s.Addresses = append(s.Addresses, name)
		count.Add(srv.Count())
	}
	s.Connections = Connections{
		Open:     count.Open,
		HTTP1:    count.Open - count.HTTP2 - count.Hijacked,
		HTTP2:    count.HTTP2,
		Hijacked: count.Hijacked,
		Oldest:   count.Oldest,
	}
	if since := a.since.Load(); since != nil {
		s.Since = *since
		if s.LastRestart == nil {
			s.LastRestart = startedBy(*since)
		}
	}
	return s
}

func lastRestart(r handoff.Restarted) *Restarted {
	if r.At.IsZero() {
		return nil
	}
	last := &Restarted{Pid: r.Pid, At: r.At, Seconds: r.Took.Seconds()}
	if r.Err != nil {
		last.Error = r.Err.Error()
	}
	return last
}

// openSocket opens or inherits a socket, a unix socket with its mode.
func (a *app) openSocket(network, addr string) (l net.Listener, err error) {
	if network != "unix" || a.unixMode == nil {
		return a.net.Listen(network, addr)
	}
	if addr[0] == '@' {
		return nil, &net.OpError{Op: "listen", Net: network, Err: errors.New(addr + ": an abstract socket has no mode")}
	}
	err = withMode(*a.unixMode, func(config net.ListenConfig) error {
		sockets := gracenet.Net{ListenConfig: config}
		l, err = sockets.Listen(network, addr)
		return err
	})
	return l, err
}

// setMode sets the mode of a unix socket: of an inherited one, or what the umask has taken
// from a new one.
func (a *app) setMode(s *server) {
	if a.unixMode == nil || s.Addr().Network() != "unix" || a.givenTo(s.user) != nil || handoff.Self().Activated(s.socket) {
		return
	}
	path := s.Addr().String()
	if info, err := os.Stat(path); err == nil && info.Mode().Perm() == *a.unixMode {
		return // who is not the owner may not set it
	}
	if err := os.Chmod(path, *a.unixMode); err != nil {
		a.logf("UnixMode: %v; serving with the mode as it is", err)
	}
}

// startState is the name of the state that tells a successor when it was started.
const startState = "gracehttp.start"

// startedBy returns the restart that has made this process, which was ready then, or nil.
func startedBy(ready time.Time) *Restarted {
	var began time.Time
	if began.UnmarshalText(handoff.Self().State(startState)) != nil {
		return nil
	}
	return &Restarted{Pid: os.Getpid(), At: began, Seconds: max(0, ready.Sub(began).Seconds())}
}

// becomeReady does what is to be done when this process serves.
func (a *app) becomeReady() {
	for _, s := range a.servers {
		a.setMode(s)
	}
	now := time.Now()
	a.since.Store(&now)
	handoff.Self().Provide(startState, func() []byte {
		text, _ := time.Now().MarshalText()
		return text
	})
}

var build = sync.OnceValue(func() (b Build) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	b.Path, b.Version, b.Go = info.Path, info.Main.Version, info.GoVersion
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.time":
			b.Time, _ = time.Parse(time.RFC3339, s.Value)
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
})

func isOver(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
