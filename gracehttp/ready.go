package gracehttp

import (
	"io"
	"net/http"
	"time"

	"github.com/facebookgo/grace/internal/handoff"
)

// LameDuck is for how long a process that got SIGTERM, and has no successor, goes on
// accepting and serving as before; not at all by default, or if d is not positive. At
// once Ready is false, so that a load balancer which asks for that sends its clients
// elsewhere, and the hooks of OnDrain are called. Each answer tells its client to open
// another connection, one client after the other; all are told after half of d. Then the
// stop begins, and DrainTimeout counts from there. SIGINT skips the rest of the time.
//
// Choose d longer than it takes the load balancer to notice, and the grace period of
// whoever sends SIGTERM, such as TimeoutStopSec= or terminationGracePeriodSeconds, longer
// than d and DrainTimeout together.
func LameDuck(d time.Duration) Option {
	return func(a *app) { a.process.LameDuck = max(0, d) }
}

// Ready reports whether new clients are welcome: Serve serves, and the process was not
// told to stop. It stays true in a handoff, since the successor serves.
func Ready() bool {
	a := current.Load()
	return a != nil && handoff.Self().Phase().Ready()
}

// ReadyHandler answers 200 while Ready is true, and 503 otherwise, for the health checks
// of load balancers and Kubernetes' readinessProbe.
func ReadyHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("Content-Type", "text/plain; charset=utf-8")
		if Ready() {
			io.WriteString(w, "ready\n")
			return
		}
		h.Set("Connection", "close")
		w.WriteHeader(http.StatusServiceUnavailable)
		io.WriteString(w, "not ready\n")
	})
}
