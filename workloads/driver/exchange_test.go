package driver

import "testing"

// RFC 9211, section 2: the cache nearest to the client is the last member.
func TestEdgeAnswer(t *testing.T) {
	t.Parallel()
	for want, lines := range map[string][][]string{
		"": {nil},
		"hit": {
			{"edge-1; hit; ttl=30"},
			{"edge-1;hit"},
			{"far; fwd=uri-miss, near; ttl=-3; hit"},
			{"far; fwd=uri-miss", "near; hit"},
		},
		"uri-miss": {{"edge-1; fwd=uri-miss; fwd-status=200; stored"}, {"far; hit, near; fwd=uri-miss"}},
		"stale":    {{"edge-1; fwd=stale; fwd-status=304; collapsed"}},
		"bypass":   {{"edge-1; fwd=bypass"}},
		"other":    {{""}, {"edge-1"}, {"edge-1; fwd"}, {"edge-1; fwd=never"}, {"HIT"}, {"edge-1; hits=3"}, {",;=,;"}},
	} {
		for _, header := range lines {
			if got := edgeAnswer(header); got != want {
				t.Errorf("Cache-Status %q: %q, want %q", header, got, want)
			}
		}
	}
}
