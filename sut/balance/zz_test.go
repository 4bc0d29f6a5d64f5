package balance
import ("testing";"net/http";"net/http/httptest";"io")
func BenchmarkZZ(b *testing.B){
 host:=httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter,_ *http.Request){ w.Write(make([]byte,1000))})); defer host.Close()
 bal:=newBalancer(b, Config{Sticky:true}, host.Listener.Addr().String())
 h:=bal.Handler()
 b.ReportAllocs()
 for b.Loop(){
  r:=httptest.NewRequest("GET","/api/photos/17",nil); r.Header.Set("Cookie","session=abc; lb=web-1")
  w:=httptest.NewRecorder(); h.ServeHTTP(w,r); io.Copy(io.Discard,w.Body)
 }
}
