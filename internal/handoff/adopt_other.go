//go:build !linux

package handoff

// Adopted does nothing: there is no systemd here.
func (g *Generation) Adopted() error { return nil }
