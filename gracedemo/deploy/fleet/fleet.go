// Package fleet holds the files beside it, for tests and benchmarks: instances under systemd, behind balancers.
package fleet

import _ "embed"

var (
	//go:embed gracedemo@.service
	Unit string
	//go:embed haproxy.cfg
	HAProxy string
	//go:embed nginx.conf
	Nginx string
)
