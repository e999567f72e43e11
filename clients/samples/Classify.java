// One photo over HTTP, with what Java 17 brings; any JSON library reads the answer.
//   java Classify.java cat.jpg [http://localhost:8080]
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Path;
import java.time.Duration;

public class Classify {
    public static void main(String[] arguments) throws Exception {
        String server = arguments.length > 1 ? arguments[1] : "http://localhost:8080";
        HttpRequest request = HttpRequest.newBuilder(URI.create(server + "/classify?top_k=3"))
                .timeout(Duration.ofSeconds(10))
                .POST(BodyPublishers.ofFile(Path.of(arguments[0])))
                .build();
        // HTTP/1.1: the server speaks no HTTP/2 without TLS.
        HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
        var answer = client.send(request, BodyHandlers.ofString());
        if (answer.statusCode() != 200) {
            // RFC 9457: `code` is stable, `detail` is for people.
            System.err.println(answer.body());
            System.exit(1);
        }
        System.out.println(answer.body());
    }
}
